"""Who may claim which pool: pure functions of the person's few facts and the pool's conditions."""

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from app.core.clock import TOWN_ZONE


class Refusal(StrEnum):
    """Why a person may not claim a pool."""

    TOO_YOUNG = "too_young"
    TOO_OLD = "too_old"
    NOT_RESIDENT = "not_resident"
    NO_CONSENT = "no_consent"


@dataclass(frozen=True, slots=True)
class PoolConditions:
    """What a pool demands. Ages are completed years, both ends included; None demands nothing."""

    id: UUID
    ordinal: int
    starts_at: datetime
    age_min: int | None
    age_max: int | None
    resident_unit_id: UUID | None


def age_years(birth_month: str, on: date) -> int:
    """Return completed years on a day, for somebody of whom only the month of birth ("2016-05") is known.

    The birthday counts as the first of the month: nobody is kept out for a day that was never asked for.
    """
    year, month = int(birth_month[:4]), int(birth_month[5:])
    return on.year - year - (on.month < month)


def refusal(*, birth_month: str, resident_unit_id: UUID | None, may_book: bool, pool: PoolConditions) -> Refusal | None:
    """Return why this person may not claim this pool, or None. Age counts on the day of the session, in the town."""
    if not may_book:
        return Refusal.NO_CONSENT
    age = age_years(birth_month, pool.starts_at.astimezone(TOWN_ZONE).date())
    if pool.age_min is not None and age < pool.age_min:
        return Refusal.TOO_YOUNG
    if pool.age_max is not None and age > pool.age_max:
        return Refusal.TOO_OLD
    if pool.resident_unit_id is not None and resident_unit_id != pool.resident_unit_id:
        return Refusal.NOT_RESIDENT
    return None
