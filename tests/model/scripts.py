"""What the scripts do, on the model's one place: claim.lua's judgement, and settle.lua's way of staying in step."""

from enum import Enum, auto

from tests.model.state import OWNER, WANTS_TO_WAIT, Gate, Guards, News, Record, Status, replaced


class Answer(Enum):
    """What claim.lua says of a claim."""

    ADMITTED = auto()
    KNOWN = auto()
    PENDING = auto()
    BOOKED = auto()
    FULL = auto()
    SOLD_OUT = auto()


_LIVE = (Status.HELD, Status.WAITS)


def somebody_waits(gate: Gate) -> bool:
    """Tell whether the waiting list is taken."""
    return any(record.status == Status.WAITS for record in gate.records)


def judge(gate: Gate, claim: int, guards: Guards) -> tuple[Answer, Gate]:
    """Admit or refuse a claim, as claim.lua does."""
    known = gate.records[claim]
    if guards.claim_id_first and known.status:
        return (Answer.PENDING if known.pending else Answer.KNOWN), gate
    if any(r.status in _LIVE and OWNER[c] == OWNER[claim] for c, r in enumerate(gate.records)):
        return Answer.BOOKED, gate
    if somebody_waits(gate):
        fits = None
    elif gate.free:
        fits = Status.HELD
    else:
        fits = Status.WAITS if WANTS_TO_WAIT[claim] else None
    if fits is None:
        comes_back = gate.parked or any(r.pending and r.status == Status.HELD for r in gate.records)
        return Answer.FULL if comes_back and guards.final_only_when_nothing_pending else Answer.SOLD_OUT, gate
    seq = gate.seq + 1
    record = Record(fits, seq, revision=1, pending=True)
    free = gate.free and fits != Status.HELD
    return Answer.ADMITTED, gate._replace(seq=seq, free=free, records=replaced(gate.records, claim, record))


def confirm(gate: Gate, claim: int) -> Gate:
    """Note that a claim is in PostgreSQL."""
    record = gate.records[claim]._replace(pending=False)
    return gate._replace(records=replaced(gate.records, claim, record))


def release(gate: Gate, claim: int, guards: Guards) -> Gate:
    """Undo a claim that is pending."""
    was_held = gate.records[claim].status == Status.HELD
    gate = gate._replace(records=replaced(gate.records, claim, Record()))
    return _let_go(gate, guards) if was_held else gate


def settle(gate: Gate, news: News, guards: Guards) -> Gate | None:
    """Take what PostgreSQL says of a claim, unless it is old. None: the claim is not known here."""
    before = gate.records[news.claim]
    if not before.status:
        return None
    if before.revision >= news.revision:
        return gate
    record = Record(news.status, before.seq, news.revision)
    gate = gate._replace(records=replaced(gate.records, news.claim, record))
    if before.status == Status.HELD and news.status != Status.HELD:
        return _let_go(gate, guards)
    if before.status != Status.HELD and news.status == Status.HELD:
        return _take(gate)
    return gate


def free_unwanted(gate: Gate) -> Gate:
    """Free a parked place that nobody waits for any more."""
    return gate if somebody_waits(gate) else gate._replace(parked=False, free=True)


def _let_go(gate: Gate, guards: Guards) -> Gate:
    if gate.ahead:
        return gate._replace(ahead=gate.ahead - 1)
    if somebody_waits(gate) and guards.place_parked_for_waiter:
        return gate._replace(parked=True)
    return gate._replace(free=True)


def _take(gate: Gate) -> Gate:
    if gate.parked:
        return gate._replace(parked=False)
    if gate.free:
        return gate._replace(free=False)
    return gate._replace(ahead=gate.ahead + 1)
