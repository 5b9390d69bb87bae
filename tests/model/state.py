"""What the model remembers: PostgreSQL, Redis, what is on its way between them, and what each phone has heard.

Everything is a tuple of small values, so that two ways to the same situation meet in one state.
"""

from enum import IntEnum
from typing import Final, NamedTuple, TypeVar

_T = TypeVar("_T")

# Three claims of two people for one place and one slot on the waiting list. The last is the first person's second try.
OWNER: Final = (0, 1, 0)
WANTS_TO_WAIT: Final = (False, True, False)
CLAIMS: Final = range(len(OWNER))
SECOND_TRY: Final = 2


class Status(IntEnum):
    """How a claim stands: in PostgreSQL, in Redis, or in what its phone has heard."""

    UNKNOWN = 0
    VOID = 1
    HELD = 2
    WAITS = 3
    GIVEN_BACK = 4
    SOLD_OUT = 5  # only ever heard


class Row(NamedTuple):
    """A claim and its booking in PostgreSQL. `told` is the revision that Redis is known to have."""

    status: Status = Status.UNKNOWN
    seq: int = 0
    revision: int = 0
    told: int = 0


class Truth(NamedTuple):
    """What PostgreSQL has committed."""

    epoch: int = 1
    rows: tuple[Row, ...] = (Row(),) * len(OWNER)


class Record(NamedTuple):
    """A claim as Redis remembers it."""

    status: Status = Status.UNKNOWN
    seq: int = 0
    revision: int = 0
    pending: bool = False


class Gate(NamedTuple):
    """The state of the release in Redis, and the server that it was built on."""

    epoch: int = 1
    server: int = 0
    seq: int = 0
    free: bool = True
    parked: bool = False
    ahead: int = 0
    records: tuple[Record, ...] = (Record(),) * len(OWNER)


class Write(NamedTuple):
    """A commit on its way to PostgreSQL: sent, then open (locks held, seen by nobody), then committed.

    `awaited`: a worker still listens for its reply, and a phone behind it. Otherwise it comes late, if at all.
    """

    claim: int
    epoch: int
    status: Status
    seq: int
    is_open: bool = False
    awaited: bool = True


class News(NamedTuple):
    """What PostgreSQL said of a claim, on its way to Redis."""

    claim: int
    status: Status
    revision: int
    epoch: int


class Left(NamedTuple):
    """How often each of the things that make the search endless may still happen."""

    crashes: int = 1  # a process dies: before or after it sends a commit, in a rebuild, before it tells Redis
    doubts: int = 1  # a connection to PostgreSQL breaks with a commit on it
    losses: int = 1  # Redis is emptied, or a replica with old data takes its place, with the old primary alive or not
    rebuilds: int = 1  # by hand, while nothing is wrong
    returns: int = 1  # somebody gives back
    hang_ups: int = 0  # a phone hangs up on a claim that waits for its judgement, and may send it again


class State(NamedTuple):
    """Everything, at one moment."""

    truth: Truth = Truth()
    gate: Gate | None = Gate()
    server: int = 0
    replica: Gate | None = None
    old: Gate | None = None  # what the old primary has, for those whose lines still lead there
    loads: tuple[Gate, ...] = ()  # rebuilt states, committed in PostgreSQL and not yet in force
    writes: tuple[Write, ...] = ()
    copies: tuple[int, ...] = ()  # claims that wait to be judged though nobody listens: only where that guard is gone
    news: News | None = None
    owed: tuple[int, ...] = ()  # tombstones to be written after the release: only where that guard is gone
    condemned: int = 0  # epochs up to here are known to be over
    heard: tuple[Status, ...] = (Status.UNKNOWN,) * len(OWNER)
    left: Left = Left()
    broken: str = ""  # the promise that the last step broke


class Guards(NamedTuple):
    """What the protocol does to keep its promises; each can be taken away."""

    tombstone: bool = True
    epoch_fence: bool = True
    gate_identity: bool = True
    claim_id_first: bool = True
    doubt_settled_by_insert: bool = True
    tombstone_before_release: bool = True
    final_only_when_nothing_pending: bool = True
    place_parked_for_waiter: bool = True
    news_only_of_its_epoch: bool = True
    sweep_compares_epoch: bool = True
    rebuild_waits_for_commits: bool = True
    activation_goes_forward: bool = True
    unjudged_end_with_their_phone: bool = True


def replaced(values: tuple[_T, ...], at: int, value: _T) -> tuple[_T, ...]:
    """Return the tuple with one value changed."""
    return (*values[:at], value, *values[at + 1 :])
