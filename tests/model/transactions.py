"""What the transactions do, on the model's one place: commit_claims_v2, void_claims_v1, hand_over_v1, the rebuild."""

from enum import Enum, auto

from tests.model.state import CLAIMS, OWNER, Gate, Guards, Record, Row, Status, Truth, Write, replaced


class Verdict(Enum):
    """What becomes of a commit that PostgreSQL has looked at."""

    OPEN = auto()  # written, not committed
    KNOWN = auto()
    VOID = auto()
    STALE = auto()
    CONTRADICTION = auto()


_LIVE = (Status.HELD, Status.WAITS)


def is_held(truth: Truth) -> bool:
    """Tell whether somebody holds the place."""
    return any(row.status == Status.HELD for row in truth.rows)


def waits_for(write: Write, others: tuple[Write, ...]) -> bool:
    """Tell whether a commit has to wait for another transaction that writes the same claim, person or place."""
    return any(
        other.is_open and (OWNER[other.claim] == OWNER[write.claim] or (other.status == write.status == Status.HELD))
        for other in others
    )


def examine(truth: Truth, write: Write, guards: Guards) -> Verdict:
    """Look at a commit under the release's shared lock, as commit_claims_v2 does."""
    if guards.epoch_fence and write.epoch != truth.epoch:
        return Verdict.STALE
    row = truth.rows[write.claim]
    if row.status == Status.VOID:
        return Verdict.VOID
    if row.status:
        return Verdict.KNOWN if row.seq == write.seq else Verdict.CONTRADICTION
    if write.status == Status.HELD and is_held(truth):
        return Verdict.CONTRADICTION
    if any(truth.rows[c].status in _LIVE for c in CLAIMS if OWNER[c] == OWNER[write.claim]):
        return Verdict.CONTRADICTION
    return Verdict.OPEN


def committed(truth: Truth, write: Write) -> Truth:
    """Return the truth with an open commit in it."""
    return with_row(truth, write.claim, Row(write.status, write.seq, revision=1, told=1))


def with_row(truth: Truth, claim: int, row: Row) -> Truth:
    """Return the truth with one row changed."""
    return truth._replace(rows=replaced(truth.rows, claim, row))


def passes_a_waiter(truth: Truth, write: Write) -> bool:
    """Tell whether this commit gives the place to somebody who came after one who waits for it."""
    return write.status == Status.HELD and any(row.status == Status.WAITS and row.seq < write.seq for row in truth.rows)


def handed_over(truth: Truth) -> Truth:
    """Give the place, if it is free, to the first who waits."""
    waiting = [(row.seq, claim) for claim, row in enumerate(truth.rows) if row.status == Status.WAITS]
    if is_held(truth) or not waiting:
        return truth
    _, claim = min(waiting)
    row = truth.rows[claim]
    return with_row(truth, claim, row._replace(status=Status.HELD, revision=row.revision + 1))


def given_back(truth: Truth, claim: int) -> Truth:
    """Cancel a booking and hand its place to the first who waits, in one transaction."""
    row = truth.rows[claim]
    return handed_over(with_row(truth, claim, row._replace(status=Status.GIVEN_BACK, revision=row.revision + 1)))


def rebuilt(truth: Truth, server: int) -> tuple[Truth, Gate]:
    """Raise the epoch, hand out what is free, and read what the new state of the gate is made of."""
    truth = handed_over(truth)
    truth = Truth(truth.epoch + 1, tuple(row._replace(told=row.revision) for row in truth.rows))
    records = tuple(
        Record(row.status, row.seq, row.revision) if row.status > Status.VOID else Record() for row in truth.rows
    )
    seq = max(row.seq for row in truth.rows)
    return truth, Gate(truth.epoch, server, seq, free=not is_held(truth), records=records)
