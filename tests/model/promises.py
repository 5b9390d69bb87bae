"""What must be true, whatever happened: in every state, and where the servers have nothing left to do."""

from tests.model import scripts
from tests.model.state import Record, State, Status

_LIVE = (Status.HELD, Status.WAITS)


def broken_promise(state: State) -> str:
    """Return the promise that this state breaks, or an empty string."""
    if state.broken:
        return state.broken
    rows = state.truth.rows
    if sum(row.status == Status.HELD for row in rows) > 1:
        return "one holder a place"
    for heard, row in zip(state.heard, rows, strict=True):
        match heard:
            case Status.HELD if row.status != Status.HELD:
                return "a yes is in PostgreSQL"
            case Status.WAITS if row.status not in _LIVE:
                return "a yes is in PostgreSQL"
            case Status.VOID | Status.SOLD_OUT if row.status in _LIVE:
                return "nobody is booked after a final no"
            case _:
                pass
    return ""


def broken_promise_at_rest(state: State) -> str:
    """Return the promise that this state breaks if nothing is left to do in it, or an empty string."""
    gate, rows = state.gate, state.truth.rows
    if gate is None:
        return "a state is rebuilt"
    held = any(row.status == Status.HELD for row in rows)
    if not held and any(row.status == Status.WAITS for row in rows):
        return "a free place goes to who waits"
    if gate.free == held or gate.parked or gate.ahead:
        return "no place leaks"
    if scripts.somebody_waits(gate) != any(row.status == Status.WAITS for row in rows):
        return "no slot on the waiting list leaks"
    known = tuple(Record(r.status, r.seq, r.revision) if r.status > Status.VOID else Record() for r in rows)
    if gate.records != known:
        return "Redis and PostgreSQL agree"
    return ""
