"""Who may claim what."""

from datetime import UTC, date, datetime
from uuid import uuid4

import pytest

from app.booking.passes.policy import PoolConditions, Refusal, age_years, refusal


@pytest.mark.parametrize(
    ("birth_month", "on", "years"),
    [
        ("2016-05", date(2026, 4, 30), 9),
        ("2016-05", date(2026, 5, 1), 10),
        ("2016-05", date(2026, 5, 31), 10),
        ("2016-12", date(2026, 1, 1), 9),
        ("2026-07", date(2026, 7, 1), 0),
    ],
)
def test_age_is_completed_years_and_the_birthday_is_the_first_of_the_month(
    birth_month: str, on: date, years: int
) -> None:
    assert age_years(birth_month, on) == years


def pool(**changes: object) -> PoolConditions:
    facts: dict[str, object] = {
        "id": uuid4(),
        "ordinal": 0,
        "starts_at": datetime(2026, 4, 30, 16, 30, tzinfo=UTC),
        "age_min": None,
        "age_max": None,
        "resident_unit_id": None,
    }
    return PoolConditions(**(facts | changes))  # pyright: ignore[reportArgumentType] - a table of changes


def test_age_counts_on_the_day_of_the_session_in_the_town_and_not_in_utc() -> None:
    # 16:30 UTC on 30 April is half past midnight on 1 May in the town: the tenth birthday.
    ten = pool(age_min=10)
    assert refusal(birth_month="2016-05", resident_unit_id=None, may_book=True, pool=ten) is None
    evening_before = pool(age_min=10, starts_at=datetime(2026, 4, 30, 12, 0, tzinfo=UTC))
    assert (
        refusal(birth_month="2016-05", resident_unit_id=None, may_book=True, pool=evening_before) is Refusal.TOO_YOUNG
    )


def test_both_ends_of_an_age_band_are_in_it() -> None:
    band = pool(age_min=9, age_max=10)
    verdicts = {
        year: refusal(birth_month=f"{year}-05", resident_unit_id=None, may_book=True, pool=band)
        for year in (2015, 2016, 2017, 2018)
    }
    assert verdicts == {2015: Refusal.TOO_OLD, 2016: None, 2017: None, 2018: Refusal.TOO_YOUNG}


def test_a_pool_of_one_unit_is_for_its_residents() -> None:
    unit = uuid4()
    for_residents = pool(resident_unit_id=unit)
    for resident_unit_id, why in ((unit, None), (uuid4(), Refusal.NOT_RESIDENT), (None, Refusal.NOT_RESIDENT)):
        assert (
            refusal(birth_month="2016-05", resident_unit_id=resident_unit_id, may_book=True, pool=for_residents) is why
        )


def test_without_consent_nothing_can_be_claimed() -> None:
    assert refusal(birth_month="2016-05", resident_unit_id=None, may_book=False, pool=pool()) is Refusal.NO_CONSENT
