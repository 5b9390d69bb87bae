"""What a round left behind: what the phones heard, what PostgreSQL wrote and when, what the gate counts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import zip_longest
from math import inf
from typing import NamedTuple
from uuid import UUID

import asyncpg

from loadtest.history import History
from loadtest.stories import ClaimStory, tell
from tests.booking.gate.agreement import GateState, Seen, seen_in_postgresql
from tests.booking.gate.builders import MadeRelease


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool as it was published. `fills`: there are more who want its places than it has."""

    id: str
    ordinal: int
    places: frozenset[int]
    starts_at_s: float
    ends_at_s: float
    fills: bool


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """A claim as PostgreSQL has it in the end. `decided_at_s` is the gate's time, in seconds of the round."""

    id: str
    account: str | None
    epoch: int
    state: str
    decided_at_s: float


@dataclass(frozen=True, slots=True)
class BookingRow:
    """A booking as PostgreSQL has it in the end."""

    id: str
    claim: str
    person: str
    pool: str
    place_no: int | None
    status: str
    wait_seq: int | None
    position: int
    cancelled_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A booking as it was from this moment on, in the order in which the changes were made.

    `at_s` is when it was written, `seen_s` when it was committed: from then on others can see it.
    """

    number: int
    at_s: float
    seen_s: float
    booking: str
    claim: str
    person: str
    pool: str
    place_no: int | None
    status: str


@dataclass(frozen=True, slots=True)
class Truth:
    """What PostgreSQL holds of the release, and how it came to that."""

    claims: Mapping[str, ClaimRow]
    bookings: Sequence[BookingRow]
    changes: Sequence[Change]
    # Each epoch that was raised: before and after.
    epochs: Sequence[tuple[int, int]]
    # Each claim that was written: its epoch, and the release's at that moment.
    epoch_of_claims: Sequence[tuple[str, int, int]]
    epoch: int
    state: GateState


class Span(NamedTuple):
    """A part of the round, in its seconds."""

    from_s: float
    to_s: float

    def meets(self, other: "Span") -> bool:
        """Tell whether the two have a moment in common."""
        return self.from_s < other.to_s and other.from_s < self.to_s


@dataclass(frozen=True, slots=True)
class Recovery:
    """How the release fared around the fault, in seconds. None: it did not come back while anybody looked."""

    unavailable_during_s: float
    unavailable_after_s: float | None
    settled_s: float | None


@dataclass(frozen=True, slots=True)
class Strain:
    """What a storm did to the service. Memory is the most that one of a kind had, before it and in the whole round.

    `back_s` is how long after its end a health check was slow or wrong for the last time. Retries are claims of winners
    that were sent again in the storm.
    """

    sent: int
    connections: int
    answers: Mapping[int, int]
    without_retry_after: int
    memory_before_mib: Mapping[str, float]
    memory_mib: Mapping[str, float]
    checks: int
    failed_checks: int
    slowest_check_s: float
    back_s: float
    retries: int
    failed_retries: int


@dataclass
class Evidence:
    """All that the verdict on a round rests on."""

    pools: Sequence[Pool]
    person_limit: int
    account_limit: int
    history: History
    truth: Truth
    gate: Seen | None
    recovery: Recovery
    unanswered: Sequence[str] = field(default_factory=tuple[str, ...])
    # Claims that were answered with 429 or 503 and not told when to come again.
    hasty: Sequence[str] = field(default_factory=tuple[str, ...])
    strain: Strain | None = None

    @cached_property
    def stories(self) -> Mapping[str, ClaimStory]:
        """The history by claim."""
        return tell(self.history)

    @cached_property
    def pool(self) -> Mapping[str, Pool]:
        """The pools by id."""
        return {pool.id: pool for pool in self.pools}

    @cached_property
    def bookings_of(self) -> Mapping[str, Sequence[BookingRow]]:
        """PostgreSQL's bookings by claim."""
        found: dict[str, list[BookingRow]] = defaultdict(list)
        for booking in self.truth.bookings:
            found[booking.claim].append(booking)
        return found

    @cached_property
    def changes_of(self) -> Mapping[str, Sequence[Change]]:
        """What became of each booking, in order."""
        found: dict[str, list[Change]] = defaultdict(list)
        for change in self.truth.changes:
            found[change.booking].append(change)
        return found

    @cached_property
    def held_spans(self) -> Mapping[str, Mapping[int, Sequence[Span]]]:
        """For each pool and place, the spans in which it can have been somebody's."""
        spans: dict[str, dict[int, list[Span]]] = defaultdict(lambda: defaultdict(list))
        for changes in self.changes_of.values():
            for change, after in zip_longest(changes, changes[1:]):
                if change.status == "confirmed" and change.place_no is not None:
                    from_s = min(change.at_s, self.truth.claims[change.claim].decided_at_s)
                    spans[change.pool][change.place_no].append(Span(from_s, after.seen_s if after else inf))
        return spans

    @cached_property
    def waited_spans(self) -> Mapping[str, Sequence[Span]]:
        """For each pool, the spans in which somebody can have waited for a place."""
        spans: dict[str, list[Span]] = defaultdict(list)
        for changes in self.changes_of.values():
            for change, after in zip_longest(changes, changes[1:]):
                if change.status == "waitlisted":
                    from_s = min(change.at_s, self.truth.claims[change.claim].decided_at_s)
                    spans[change.pool].append(Span(from_s, after.seen_s if after else inf))
        return spans


async def read_truth(
    database: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease, *, began_at_epoch_seconds: float
) -> Truth:
    """Read what PostgreSQL holds of a release, and the observer's notes, all of one instant."""
    async with database.transaction(isolation="repeatable_read", readonly=True):
        return await _read_truth(database, made, began_at_epoch_seconds)


async def _read_truth(
    database: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease, began_at_epoch_seconds: float
) -> Truth:
    def moment(at: datetime) -> float:
        return at.timestamp() - began_at_epoch_seconds

    def text(value: UUID | None) -> str | None:
        return None if value is None else str(value)

    claims = await database.fetch(
        "SELECT id, account_id, epoch, state, decided_at FROM claim WHERE release_id = $1", made.release_id
    )
    bookings = await database.fetch(
        "SELECT booking.id, claim_id, person_id, pool_id, place_no, status, wait_seq, position,"
        " cancelled_reason FROM booking"
        " JOIN claim ON claim.id = claim_id WHERE release_id = $1 ORDER BY claim_id, position",
        made.release_id,
    )
    # A claim that was undone whole, in the transaction that wrote it, nobody ever saw.
    changes = await database.fetch(
        "SELECT seen_booking.*, pg_xact_commit_timestamp(seen_booking.xmin) AS seen_at"
        " FROM seen_booking JOIN booking ON booking.id = booking_id"
        " WHERE seen_booking.pool_id = ANY ($1) ORDER BY seen_booking.id",
        made.pools,
    )
    epochs = await database.fetch(
        "SELECT before, after FROM seen_epoch WHERE release_id = $1 ORDER BY id", made.release_id
    )
    met = await database.fetch("SELECT claim_id, claim_epoch, release_epoch FROM seen_claim ORDER BY id")
    return Truth(
        claims={
            str(row["id"]): ClaimRow(
                str(row["id"]), text(row["account_id"]), row["epoch"], row["state"], moment(row["decided_at"])
            )
            for row in claims
        },
        bookings=[
            BookingRow(
                str(row["id"]),
                str(row["claim_id"]),
                str(row["person_id"]),
                str(row["pool_id"]),
                row["place_no"],
                row["status"],
                row["wait_seq"],
                row["position"],
                row["cancelled_reason"],
            )
            for row in bookings
        ],
        changes=[
            Change(
                row["id"],
                moment(row["at"]),
                moment(row["seen_at"]),
                str(row["booking_id"]),
                str(row["claim_id"]),
                str(row["person_id"]),
                str(row["pool_id"]),
                row["place_no"],
                row["status"],
            )
            for row in changes
        ],
        epochs=[(row["before"], row["after"]) for row in epochs],
        epoch_of_claims=[(str(row["claim_id"]), row["claim_epoch"], row["release_epoch"]) for row in met],
        epoch=await database.fetchval("SELECT epoch FROM release WHERE id = $1", made.release_id),
        state=await seen_in_postgresql(database, made),
    )
