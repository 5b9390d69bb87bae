"""Nothing final is said on the strength of a claim that PostgreSQL may still refuse."""

from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.desk import Request
from app.booking.gate.passes import PassSigner
from tests.booking.gate.agreement import assert_agrees
from tests.booking.gate.builders import Phone, Worker, held, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.steps import admit, give_back

pytestmark = pytest.mark.anyio

# Past at once, so that what is admitted is overdue for the next sweep.
AT_ONCE = {"pending_deadline_ms": 0}


async def _assert_not_final(worker: Worker, request: Request, word: str) -> None:
    said = await worker.ask(request)
    assert (said.status, said.word, said.body["final"], said.body["retryable"]) == (409, word, False, True)
    assert said.body["retry_after_ms"] > 0
    assert "booking" not in said.body


async def test_nobody_is_told_of_a_booking_that_is_not_in_postgresql(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(5,))
    dead, alive = await open_worker(**AT_ONCE), await open_worker()
    phone = Phone.with_pass(signer, made)
    await admit(dead, phone.claim())
    second = phone.claim()
    await _assert_not_final(alive, second, "undecided")
    await alive.gate.sweep(made.release_id)
    assert (await alive.ask(second)).word == "confirmed"
    assert len(await held(db, made)) == 1
    await assert_agrees(db, redis, made)


async def test_a_claim_for_two_is_not_refused_for_good_while_one_of_them_has_another_pending(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner
) -> None:
    made = await make_release(db, capacities=(5,))
    worker = await open_worker()
    phone = Phone.with_pass(signer, made, people=2)
    # One by one: the first of them is placed, so the claim is; the other has a claim under way.
    await admit(worker, phone.claim(people=phone.people[:1]))
    both = phone.claim(together=False)
    assert (await worker.ask(both)).word == "confirmed"
    # Together they are all or nothing, and what stands in the way may go away.
    await _assert_not_final(worker, phone.claim(), "undecided")
    assert len(await held(db, made)) == 1


@pytest.mark.parametrize("limits", [(1, 10), (10, 1)], ids=["person", "account"])
async def test_no_limit_is_reached_for_good_by_a_claim_that_is_pending(
    db: "asyncpg.Connection[asyncpg.Record]",
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
    limits: tuple[int, int],
) -> None:
    made = await make_release(db, capacities=(5, 5), person_limit=limits[0], account_limit=limits[1])
    dead, alive = await open_worker(**AT_ONCE), await open_worker()
    phone = Phone.with_pass(signer, made)
    await admit(dead, phone.claim(0))
    other = phone.claim(1)
    await _assert_not_final(alive, other, "undecided")
    await alive.gate.sweep(made.release_id)
    assert (await alive.ask(other)).word == "confirmed"
    # And one that is in PostgreSQL is final.
    assert (await alive.ask(phone.claim(0))).word == "limit_reached"
    await assert_agrees(db, redis, made)


async def test_a_waiting_list_is_not_full_for_good_while_a_waiter_is_pending(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1,), waitlist_limit=1)
    dead, alive = await open_worker(**AT_ONCE), await open_worker()
    assert (await alive.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    await admit(dead, Phone.with_pass(signer, made).claim(waitlist=True))
    newcomer = Phone.with_pass(signer, made).claim(waitlist=True)
    await _assert_not_final(alive, newcomer, "full")
    # Without the wish to wait there is nothing to come back for.
    assert (await alive.ask(Phone.with_pass(signer, made).claim())).word == "sold_out"
    await alive.gate.sweep(made.release_id)
    assert (await alive.ask(newcomer)).word == "waitlisted"
    await assert_agrees(db, redis, made)


async def test_who_stopped_waiting_has_no_place_and_no_position(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, engine: AsyncEngine
) -> None:
    made = await make_release(db, capacities=(1,), waitlist_limit=1)
    worker = await open_worker()
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    phone = Phone.with_pass(signer, made)
    request = phone.claim(waitlist=True)
    waiting = await worker.ask(request)
    assert [(b["place_no"], b["position"]) for b in waiting.body["bookings"]] == [(None, 1)]
    await worker.gate.settle(made.release_id, await give_back(engine, phone, UUID(waiting.body["claim"])))
    said = await worker.ask(request)
    assert [(b["status"], b["place_no"], b["position"]) for b in said.body["bookings"]] == [("cancelled", None, None)]


async def test_a_suspended_state_answers_nobody_and_the_next_claim_makes_it_anew(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1,))
    worker, other = await open_worker(), await open_worker()
    first, late = (Phone.with_pass(signer, made).claim() for _ in range(2))
    assert (await worker.ask(first)).word == "confirmed"
    assert (await other.ask(late)).word in {"full", "sold_out"}
    async with db.transaction():
        # Whoever changes the release holds its lock alone, so nobody can make the state anew before the change is in.
        await db.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('release:' || $1::uuid::text, 0))", made.release_id
        )
        await worker.gate.suspend(made.release_id)
        assert (await other.ask(late)).word == "rebuilding"
        await db.execute("INSERT INTO place (pool_id, place_no) VALUES ($1, 2)", made.pools[0])
    assert (await other.ask(late)).word in {"confirmed", "rebuilding"}
    assert (await other.ask(first)).word == "confirmed"
    assert (await other.ask(late)).word == "confirmed"
    await assert_agrees(db, redis, made)
