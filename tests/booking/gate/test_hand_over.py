"""Hand to hand: a free place goes to whoever has waited longest and can take it."""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.booking.gate.builders import MadeRelease, Wish, commit, held, make_release, rows_of, winner
from tests.booking.gate.waits import until_blocked

pytestmark = pytest.mark.anyio


async def _waiters(
    db: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease, *people: UUID, ordinal: int = 0, first_seq: int = 100
) -> list[UUID]:
    """Put people on the waiting list, in this order; the rows are written in the opposite one."""
    claims = [winner(Wish(person, ordinal, None), seq=first_seq + n) for n, person in enumerate(people)]
    for claim in reversed(claims):
        assert await commit(db, made.at_epoch(0), claim) == {claim.record.claim_id: "in"}
    return [claim.record.claim_id for claim in claims]


async def _hand_over(
    db: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease, place_no: int, *, ordinal: int = 0
) -> UUID | None:
    claim_id: UUID | None = await db.fetchval("SELECT hand_over_v1($1, $2)", made.pools[ordinal], place_no)
    return claim_id


async def test_the_first_who_waits_gets_the_place(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(1,))
    first, second = await _waiters(db, made, person := uuid4(), uuid4())
    assert await _hand_over(db, made, 1) == first
    assert await rows_of(db, first) == [(person, 1, "confirmed")]
    row = await db.fetchrow("SELECT state, revision, gate_revision FROM claim WHERE id = $1", first)
    # Behind by one: the gate has not heard of it yet, and the row says so by itself.
    assert row is not None
    assert tuple(row) == ("confirmed", 2, 1)
    assert await db.fetchval("SELECT state FROM claim WHERE id = $1", second) == "waitlisted"


async def test_nobody_waits_and_the_place_stays_free(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    assert await _hand_over(db, made, 1) is None
    assert await held(db, made) == []


async def test_a_place_that_is_held_is_not_handed_over(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(1,))
    await commit(db, made.at_epoch(0), winner(Wish(uuid4())))
    (waiting,) = await _waiters(db, made, uuid4())
    assert await _hand_over(db, made, 1) is None
    assert await db.fetchval("SELECT state FROM claim WHERE id = $1", waiting) == "waitlisted"


async def test_a_waiter_who_is_elsewhere_by_now_leaves_the_queue_and_the_next_gets_it(
    db: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    made = await make_release(db, capacities=(1, 1), start_hours=(48, 48))
    busy, ready = uuid4(), uuid4()
    first, second = await _waiters(db, made, busy, ready)
    await commit(db, made.at_epoch(0), winner(Wish(busy, 1, 1)))
    assert await _hand_over(db, made, 1) == second
    assert await rows_of(db, first) == [(busy, None, "cancelled")]
    assert await rows_of(db, second) == [(ready, 1, "confirmed")]
    row = await db.fetchrow("SELECT state, revision FROM claim WHERE id = $1", first)
    assert row is not None
    assert tuple(row) == ("cancelled", 2)
    assert await held(db, made) == [(0, 1), (1, 1)]


async def test_only_waiters_who_are_elsewhere_leave_the_place_free(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(1, 1), start_hours=(48, 48))
    (claim_id,) = await _waiters(db, made, busy := uuid4())
    await commit(db, made.at_epoch(0), winner(Wish(busy, 1, 1)))
    assert await _hand_over(db, made, 1) is None
    assert await rows_of(db, claim_id) == [(busy, None, "cancelled")]
    assert await held(db, made) == [(1, 1)]


async def test_nothing_is_handed_over_once_the_session_has_begun(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(1,), start_hours=(0,))
    await _waiters(db, made, uuid4())
    assert await _hand_over(db, made, 1) is None
    assert await held(db, made) == []


async def test_nothing_is_handed_over_in_a_pool_that_was_cancelled(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(1,))
    await _waiters(db, made, uuid4())
    await db.execute("UPDATE pool SET state = 'cancelled' WHERE id = $1", made.pools[0])
    assert await _hand_over(db, made, 1) is None


async def test_two_places_at_once_go_to_the_first_two_in_their_order(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    made = await make_release(db, capacities=(2,))
    first, second, third = await _waiters(db, made, uuid4(), uuid4(), uuid4())
    one, two = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    try:
        handing = one.transaction()
        await handing.start()
        assert await _hand_over(one, made, 2) == first
        other = asyncio.create_task(_hand_over(two, made, 1))
        await until_blocked(db, two)
        await handing.commit()
        assert await other == second
    finally:
        await one.close()
        await two.close()
    assert await db.fetchval("SELECT state FROM claim WHERE id = $1", third) == "waitlisted"
    assert await held(db, made) == [(0, 1), (0, 2)]


async def test_a_hand_over_that_is_rolled_back_keeps_the_first_at_the_head(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    made = await make_release(db, capacities=(2,))
    first, _second = await _waiters(db, made, uuid4(), uuid4())
    one, two = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    try:
        handing = one.transaction()
        await handing.start()
        assert await _hand_over(one, made, 2) == first
        other = asyncio.create_task(_hand_over(two, made, 1))
        await until_blocked(db, two)
        await handing.rollback()
        assert await other == first
    finally:
        await one.close()
        await two.close()


async def test_one_of_a_family_is_handed_a_place_and_the_other_goes_on_waiting(
    db: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    made = await make_release(db, capacities=(2,))
    older, younger = uuid4(), uuid4()
    family = winner(Wish(older, 0, None), Wish(younger, 0, None), seq=9)
    await commit(db, made.at_epoch(0), family)
    assert await _hand_over(db, made, 1) == family.record.claim_id
    assert await rows_of(db, family.record.claim_id) == [(older, 1, "confirmed"), (younger, None, "waitlisted")]
    assert await _hand_over(db, made, 2) == family.record.claim_id
    assert await rows_of(db, family.record.claim_id) == [(older, 1, "confirmed"), (younger, 2, "confirmed")]
