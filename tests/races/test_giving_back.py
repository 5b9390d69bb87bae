"""Giving back while others wait and newcomers press: hand to hand, in order, and both engines agree afterwards."""

import asyncio
import random

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.passes import PassSigner
from app.core.ids import new_id
from tests.booking.gate.agreement import assert_agrees
from tests.booking.gate.builders import MadeRelease, Phone, Worker, make_release, words
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.steps import give_back

pytestmark = pytest.mark.anyio


async def _sweep_until_calm(worker: Worker, made: MadeRelease) -> None:
    # Three rounds: hand out what is parked, hear of what that changed, free what nobody wants.
    for _ in range(3):
        await worker.gate.sweep(made.release_id)


async def _assert_order_was_kept(db: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease) -> None:
    """Assert that whoever waits came after everybody who was handed a place, or who took one directly."""
    for pool_id in made.pools:
        rows = await db.fetch(
            "SELECT booking.status, claim.seq FROM booking JOIN claim ON claim.id = booking.claim_id"
            " WHERE booking.pool_id = $1 AND booking.status IN ('confirmed', 'waitlisted')",
            pool_id,
        )
        holding = [row["seq"] for row in rows if row["status"] == "confirmed"]
        waiting = [row["seq"] for row in rows if row["status"] == "waitlisted"]
        if waiting and holding:
            assert max(holding) < min(waiting)


async def test_a_place_given_back_goes_to_the_first_who_waits_and_to_no_newcomer(
    db: "asyncpg.Connection[asyncpg.Record]",
    engine: AsyncEngine,
    worker: Worker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,), waitlist_limit=5)
    holder, waiter, newcomer = (Phone.with_pass(signer, made) for _ in range(3))
    claim_id = new_id()
    assert (await worker.ask(holder.claim(claim_id=claim_id))).word == "confirmed"
    waiting = waiter.claim(waitlist=True)
    assert (await worker.ask(waiting)).word == "waitlisted"
    changed = await give_back(engine, holder, claim_id)
    assert len(changed) == 2
    # PostgreSQL has handed it over, the gate has not heard of it: a newcomer is refused all the same.
    assert (await worker.ask(newcomer.claim())).word in {"full", "sold_out"}
    await worker.gate.settle(made.release_id, changed)
    assert (await worker.ask(newcomer.claim())).word in {"full", "sold_out"}
    said = await worker.ask(waiting)
    assert (said.status, said.word) == (200, "confirmed")
    await assert_agrees(db, redis, made)


async def test_a_place_that_nobody_waits_for_is_free_for_the_next_phone(
    db: "asyncpg.Connection[asyncpg.Record]",
    engine: AsyncEngine,
    worker: Worker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,))
    holder, newcomer = Phone.with_pass(signer, made), Phone.with_pass(signer, made)
    request = holder.claim(claim_id=(claim_id := new_id()))
    await worker.ask(request)
    await worker.gate.settle(made.release_id, await give_back(engine, holder, claim_id))
    assert (await worker.ask(newcomer.claim())).word == "confirmed"
    # The id that was given back never books again.
    assert (await worker.ask(request)).word == "cancelled"
    await assert_agrees(db, redis, made)


@pytest.mark.parametrize("seed", range(6))
async def test_a_storm_of_giving_back_keeps_the_order_and_loses_nothing(
    db: "asyncpg.Connection[asyncpg.Record]",
    engine: AsyncEngine,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
    seed: int,
) -> None:
    draw = random.Random(seed)  # noqa: S311 - the storm of the test, the same each time
    made = await make_release(db, capacities=(6, 6), waitlist_limit=40)
    workers = [await open_worker(), await open_worker()]
    phones = [Phone.with_pass(signer, made) for _ in range(60)]
    ids = [new_id() for _ in phones]
    answers = await asyncio.gather(
        *(workers[n % 2].ask(phone.claim(n % 2, claim_id=ids[n], waitlist=True)) for n, phone in enumerate(phones))
    )
    assert words(answers) == {"confirmed": 12, "waitlisted": 48}
    turns = asyncio.Semaphore(8)

    async def withdraw(n: int) -> None:
        async with turns:
            changed = await give_back(engine, phones[n], ids[n])
            # Some workers die here; the sweep tells the gate what they would have told it.
            if draw.random() < 0.8:
                await asyncio.sleep(draw.random() / 50)
                await draw.choice(workers).gate.settle(made.release_id, changed)

    async def press(n: int) -> None:
        async with turns:
            await draw.choice(workers).ask(Phone.with_pass(signer, made).claim(n % 2, waitlist=n % 3 == 0))

    async def sweep() -> None:
        async with turns:
            await draw.choice(workers).gate.sweep(made.release_id)

    storm = [withdraw(n) for n in draw.sample(range(60), k=45)]
    storm += [press(n) for n in range(60)] + [sweep() for _ in range(6)]
    draw.shuffle(storm)
    await asyncio.gather(*storm)
    await _sweep_until_calm(workers[0], made)
    await assert_agrees(db, redis, made)
    await _assert_order_was_kept(db, made)
    # No rebuild was needed to come to this.
    assert await db.fetchval("SELECT epoch FROM release WHERE id = $1", made.release_id) == 1
