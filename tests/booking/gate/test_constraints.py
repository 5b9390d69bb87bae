"""Constraints, not code, keep a place single: each stops its violation alone, by a plain INSERT."""

from uuid import UUID, uuid4

import asyncpg
import pytest

from app.core.ids import new_id
from tests.booking.gate.builders import MadeRelease, make_release

pytestmark = pytest.mark.anyio


async def _book(
    db: "asyncpg.Connection[asyncpg.Record]",
    made: MadeRelease,
    *,
    person: UUID,
    place_no: int | None,
    ordinal: int = 0,
    status: str = "confirmed",
) -> None:
    """Insert a claim with one booking, past every function."""
    claim_id = new_id()
    await db.execute(
        "INSERT INTO claim (id, release_id, account_id, epoch, seq, state, decided_at)"
        " VALUES ($1, $2, $3, 0, 1, 'confirmed', now())",
        claim_id,
        made.release_id,
        uuid4(),
    )
    await db.execute(
        "INSERT INTO booking (id, claim_id, position, person_id, pool_id, place_no, during, status, wait_seq)"
        " SELECT $1, $2, 0, $3, id, $5, during, $6::text, CASE WHEN $6::text = 'waitlisted' THEN 1 END"
        " FROM pool WHERE id = $4",
        new_id(),
        claim_id,
        person,
        made.pools[ordinal],
        place_no,
        status,
    )


async def test_there_is_no_place_31_of_30(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(30,))
    with pytest.raises(asyncpg.ForeignKeyViolationError) as refused:
        await _book(db, made, person=uuid4(), place_no=31)
    assert refused.value.constraint_name == "fk_booking_place"


async def test_a_place_has_one_holder(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    await _book(db, made, person=uuid4(), place_no=1)
    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await _book(db, made, person=uuid4(), place_no=1)
    assert refused.value.constraint_name == "uq_booking_one_holder_each_place"


async def test_nobody_is_in_two_places_at_once(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(2, 2), start_hours=(48, 48))
    await _book(db, made, person=(person := uuid4()), place_no=1)
    with pytest.raises(asyncpg.ExclusionViolationError) as refused:
        await _book(db, made, person=person, place_no=1, ordinal=1)
    assert refused.value.constraint_name == "ex_booking_nobody_in_two_places"


async def test_nobody_is_in_two_places_at_once_even_in_two_releases(
    db: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    made, other = await make_release(db), await make_release(db)
    await _book(db, made, person=(person := uuid4()), place_no=1)
    with pytest.raises(asyncpg.ExclusionViolationError):
        await _book(db, other, person=person, place_no=1)


@pytest.mark.parametrize("second", ["confirmed", "waitlisted"])
async def test_a_person_is_in_a_pool_once(db: "asyncpg.Connection[asyncpg.Record]", second: str) -> None:
    made = await make_release(db)
    await _book(db, made, person=(person := uuid4()), place_no=None, status="waitlisted")
    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await _book(db, made, person=person, place_no=2 if second == "confirmed" else None, status=second)
    assert refused.value.constraint_name == "uq_booking_one_each_person"


async def test_whoever_holds_has_a_place_and_whoever_waits_has_none(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await _book(db, made, person=uuid4(), place_no=None)
    assert refused.value.constraint_name == "ck_booking_holder_has_a_place"
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await _book(db, made, person=uuid4(), place_no=1, status="waitlisted")
    assert refused.value.constraint_name == "ck_booking_waiter_waits"


async def test_a_place_that_is_booked_cannot_be_taken_away(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    await _book(db, made, person=uuid4(), place_no=5)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await db.execute("DELETE FROM place WHERE pool_id = $1 AND place_no = 5", made.pools[0])


async def test_what_was_given_back_frees_place_and_person(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(1, 1), start_hours=(48, 48))
    person = uuid4()
    await _book(db, made, person=person, place_no=1, status="cancelled")
    await _book(db, made, person=person, place_no=1)
    await db.execute("UPDATE booking SET status = 'cancelled_by_staff' WHERE status = 'confirmed'")
    await _book(db, made, person=person, place_no=1, ordinal=1)
    await _book(db, made, person=uuid4(), place_no=1)
