"""What happened, as the phones saw it: every request with its span and its outcome, kept small.

The verdict is computed from this and from the operator's audit, from nothing else. Times are seconds relative to the
opening, on the server's clock as the crowd read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from loadtest.behaviour import Wish


class Kind(StrEnum):
    """Which promise of the API a request asked for."""

    SIGN_IN = "sign_in"
    REGISTER = "register"
    PASS = "pass"  # noqa: S105 - the API's word for a signed permission to claim
    TIME = "time"
    AVAILABILITY = "availability"
    CLAIM = "claim"
    CLAIM_STATUS = "claim_status"
    MY_CLAIMS = "my_claims"
    CANCEL = "cancel"


class Seat(msgspec.Struct, frozen=True, gc=False):
    """One booking as an answer showed it."""

    person: str
    pool: str
    place_no: int | None
    status: str
    position: int | None = None


class Operation(msgspec.Struct, frozen=True, gc=False):
    """One request. `status` 0 and `outcome` starting with `no_answer_` say that the outcome is not known.

    `due_s` is when the parent meant to act: latencies count from there, or a slow crowd would flatter the server.
    `after_rush` marks what the crowd asked once everything was quiet.
    """

    kind: Kind
    parent: int
    claim: str
    due_s: float
    started_s: float
    ended_s: float
    status: int
    outcome: str
    final: bool = False
    seq: int | None = None
    decided_at_s: float | None = None
    seats: tuple[Seat, ...] = ()
    after_rush: bool = False

    @property
    def is_yes(self) -> bool:
        """Whether this answer promised places."""
        return self.status in {200, 201} and self.outcome == "confirmed"

    @property
    def is_final_no(self) -> bool:
        """Whether this answer said: nothing more to hope for with this claim."""
        return self.kind is Kind.CLAIM and self.status == 409 and self.final  # noqa: PLR2004 - api.md, the grab


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """One pool before the rush. `left_before` is what the crowd may take at most."""

    id: str
    title: str
    capacity: int
    left_before: int
    starts_at_s: float
    ends_at_s: float


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """The release before the rush."""

    id: str
    title: str
    opens_at: str
    person_limit: int
    account_limit: int
    pools: tuple[PoolFacts, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """Places left and people waiting in every pool, in the order of `ReleaseFacts.pools`, at one moment."""

    at_s: float
    left: tuple[int, ...]
    waiting: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lingering:
    """A parent who at the end still wanted a place: in which pools."""

    parent: int
    pools: frozenset[str]


@dataclass(slots=True)
class History:
    """Everything one rush left behind."""

    wishes: dict[str, Wish] = field(default_factory=dict[str, Wish])
    # Which parent sent a claim.
    senders: dict[str, int] = field(default_factory=dict[str, int])
    operations: list[Operation] = field(default_factory=list[Operation])
    levels: list[Level] = field(default_factory=list[Level])
    lingering: list[Lingering] = field(default_factory=list[Lingering])
    endings: dict[int, str] = field(default_factory=dict[int, str])
    # Claims of each account as it lists them itself after the rush: parent -> claim -> state.
    listed: dict[int, Mapping[str, str]] = field(default_factory=dict[int, Mapping[str, str]])
    settling_seconds: float = 0.0
