"""What a release may be, and what follows from it: pure functions over its description."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum, unique
from hashlib import sha256
from typing import Final
from uuid import UUID

from app.core.clock import iso
from app.core.problems import FieldError

# These bounds stand in the OpenAPI document, so they are constants and not settings: a front-end builds on them.
# A whole release must be made, published and rebuilt within the time-outs of one statement each.
POOLS_PER_RELEASE_MAX: Final = 200
PLACES_PER_POOL_MAX: Final = 10_000
PLACES_PER_RELEASE_MAX: Final = 200_000
PERSON_LIMIT_MAX: Final = POOLS_PER_RELEASE_MAX
ACCOUNT_LIMIT_MAX: Final = 1_000
AGE_YEARS_MAX: Final = 130
# A camp of a week is one session at most; longer things are several sessions.
SESSION_MAX: Final = timedelta(days=7)

_RULES_VERSION_DIGITS: Final = 16


@unique
class Phase(StrEnum):
    """Where a published release stands at an instant."""

    UPCOMING = "upcoming"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """A pool to be made: what kind of thing stands in front of it, where, when, for whom, and how many places."""

    kind: str
    title: str
    station_id: UUID | None
    starts_at: datetime
    ends_at: datetime
    capacity: int
    age_min: int | None = None
    age_max: int | None = None
    resident_unit_id: UUID | None = None
    waitlist_limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSpec:
    """A release to be made, with its pools in the order in which they will be shown."""

    title: str
    opens_at: datetime
    closes_at: datetime
    person_limit: int
    account_limit: int
    pools: tuple[PoolSpec, ...]
    rules: str = ""
    mode: str = "grab"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseChanges:
    """What a release shall be; None leaves a limit or the rules as they are."""

    title: str
    opens_at: datetime
    closes_at: datetime
    person_limit: int | None = None
    account_limit: int | None = None
    rules: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPool:
    """What of a pool belongs to the rules. Its capacity does not: that may change, with a reason."""

    id: UUID
    kind: str
    station_id: UUID | None
    starts_at: datetime
    ends_at: datetime
    age_min: int | None
    age_max: int | None
    resident_unit_id: UUID | None
    waitlist_limit: int


def to_the_millisecond(instant: datetime) -> datetime:
    """Return the instant without its microseconds: gate and API know none, and all must mean the same moment."""
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)


def opening_errors(
    opens_at: datetime, closes_at: datetime, starts: Collection[datetime], *, now: datetime
) -> Iterator[FieldError]:
    """Yield what is wrong with the times of a release whose sessions start at these.

    It may stay open for a later session while an earlier one goes on, but not when there is none left to come to.
    """
    if closes_at <= opens_at:
        yield FieldError("closes_at", "not_after_opens_at")
    elif closes_at <= now:
        yield FieldError("closes_at", "in_the_past")
    elif starts and closes_at > max(starts):
        yield FieldError("closes_at", "after_last_session")


def pool_errors(pools: Iterable[PoolSpec], *, opens_at: datetime, pools_field: str = "pools") -> Iterator[FieldError]:
    """Yield what is wrong with pools, each field named under `pools_field` as the caller's body calls it."""
    for index, pool in enumerate(pools):
        at = f"{pools_field}[{index}]"
        if pool.ends_at <= pool.starts_at:
            yield FieldError(f"{at}.ends_at", "not_after_starts_at")
        elif pool.ends_at - pool.starts_at > SESSION_MAX:
            yield FieldError(f"{at}.ends_at", "too_long", f"{SESSION_MAX.days} d")
        if pool.starts_at <= opens_at:
            yield FieldError(f"{at}.starts_at", "not_after_opens_at")
        if pool.age_min is not None and pool.age_max is not None and pool.age_max < pool.age_min:
            yield FieldError(f"{at}.age_max", "below_age_min")


def total_errors(pools: Sequence[PoolSpec], *, pools_field: str = "pools") -> Iterator[FieldError]:
    """Yield what is wrong with a release's size: each pool may be within its bound and all of them too many."""
    yield from places_errors(sum(pool.capacity for pool in pools), field=pools_field)


def places_errors(places: int, *, field: str) -> Iterator[FieldError]:
    """Yield what is wrong with so many places in one release."""
    if places > PLACES_PER_RELEASE_MAX:
        yield FieldError(field, "too_many_places", PLACES_PER_RELEASE_MAX)


def phase_of(opens_at: datetime, closes_at: datetime, *, now: datetime) -> Phase:
    """Return where a published release stands. It is open from `opens_at` on and closed from `closes_at` on."""
    if now < opens_at:
        return Phase.UPCOMING
    return Phase.OPEN if now < closes_at else Phase.CLOSED


def rules_version(
    *, mode: str, rules: str, person_limit: int, account_limit: int, pools: Iterable[PublishedPool]
) -> str:
    """Return the version of the rules: the same for the same rules, and for no others (SHA-256 over canonical JSON).

    The pools' order counts, the times of opening and closing do not: those can move without anybody losing a place.
    """
    canonical = json.dumps(
        {
            "mode": mode,
            "rules": rules,
            "person_limit": person_limit,
            "account_limit": account_limit,
            "pools": [
                {
                    "id": str(pool.id),
                    "kind": pool.kind,
                    "station": str(pool.station_id),
                    "starts_at": iso(pool.starts_at),
                    "ends_at": iso(pool.ends_at),
                    "age_min": pool.age_min,
                    "age_max": pool.age_max,
                    "resident_unit": str(pool.resident_unit_id),
                    "waitlist_limit": pool.waitlist_limit,
                }
                for pool in pools
            ],
        },
        ensure_ascii=False,
        sort_keys=True,
        separators=(",", ":"),
    )
    return "r-" + sha256(canonical.encode()).hexdigest()[:_RULES_VERSION_DIGITS]
