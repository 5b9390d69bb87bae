"""What the gate tells: what came of a claim, to whoever made it, and what is left of a release."""

from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

import msgspec

from app.booking.gate.admission import HasHungUp
from app.booking.gate.records import ClaimRecord, PoolCounts
from app.booking.gate.state import Release
from app.core.problems import Problem


class Decided(NamedTuple):
    """The claim is in PostgreSQL. `repeated`: it was before this request."""

    release: Release
    record: ClaimRecord
    repeated: bool


class Pending(NamedTuple):
    """The claim was admitted; whether PostgreSQL has it is not known yet."""

    retry_after_ms: int


# What came of a claim.
Outcome = Decided | Pending | Problem


# Made for each claim.
class Caller(msgspec.Struct, frozen=True):
    """Who makes a claim: `tell` hears what came of it, once, and must not raise; nor must `has_hung_up`."""

    tell: Callable[[Outcome], None]
    has_hung_up: HasHungUp


class PoolView(NamedTuple):
    """The counts of one pool as they were at one instant."""

    pool_id: UUID
    counts: PoolCounts


class Availability(NamedTuple):
    """What is left of a release, as it was at `as_of_ms`. `version` grows with every change within an epoch."""

    release: Release
    as_of_ms: int
    version: int
    pools: tuple[PoolView, ...]
