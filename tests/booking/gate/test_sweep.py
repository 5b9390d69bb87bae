"""What a crash leaves half done is finished: by asking PostgreSQL in writing, never by a deadline alone."""

import asyncio

import asyncpg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.passes import PassSigner
from app.core.ids import new_id
from tests.booking.gate.agreement import assert_agrees, seen_in_redis
from tests.booking.gate.builders import MadeRelease, Phone, Worker, commit, held, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.steps import admit, give_back
from tests.booking.gate.waits import until

pytestmark = pytest.mark.anyio

# Past at once, so that what is admitted is overdue for the next sweep.
AT_ONCE = {"pending_deadline_ms": 0}


async def _pending(redis: Redis, made: MadeRelease) -> int:
    return len((await seen_in_redis(redis, made)).pending)


async def test_the_place_of_a_claim_whose_worker_died_goes_to_somebody_else(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1,))
    dead, alive = await open_worker(**AT_ONCE), await open_worker()
    orphan = Phone.with_pass(signer, made).claim()
    await admit(dead, orphan)
    newcomer = Phone.with_pass(signer, made).claim()
    said = await alive.ask(newcomer)
    assert (said.word, said.body["final"]) == ("full", False)
    await alive.gate.sweep(made.release_id)
    assert (await alive.ask(newcomer)).word == "confirmed"
    # The first phone comes back late: its id is void, and it is told to take a new one.
    late = await alive.ask(orphan)
    assert late.word in {"full", "sold_out", "claim_void"}
    assert len(await held(db, made)) == 1
    await assert_agrees(db, redis, made)


async def test_a_phone_that_comes_back_before_the_sweep_finds_its_place(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1,))
    dead, alive = await open_worker(**AT_ONCE), await open_worker()
    request = Phone.with_pass(signer, made).claim()
    winner = await admit(dead, request)
    said = await alive.ask(request)
    assert said.word == "confirmed"
    assert said.place[1] == winner.record.entries[0].number
    await alive.gate.sweep(made.release_id)
    assert (await alive.ask(request)).body == said.body
    await assert_agrees(db, redis, made)


async def test_a_void_id_is_told_so_and_never_books(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(5,))
    dead, alive = await open_worker(**AT_ONCE), await open_worker()
    phone = Phone.with_pass(signer, made)
    orphan = phone.claim()
    await admit(dead, orphan)
    await alive.gate.sweep(made.release_id)
    for _ in range(2):
        said = await alive.ask(orphan)
        assert (said.status, said.word) == (409, "claim_void")
    assert (await alive.ask(phone.claim())).word == "confirmed"
    assert len(await held(db, made)) == 1
    await assert_agrees(db, redis, made)


async def test_a_claim_that_was_written_and_not_confirmed_is_confirmed(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1,))
    dead, alive = await open_worker(**AT_ONCE), await open_worker()
    request = Phone.with_pass(signer, made).claim()
    winner = await admit(dead, request)
    assert await commit(db, made.at_epoch(1), winner) == {winner.record.claim_id: "in"}
    await alive.gate.sweep(made.release_id)
    assert await _pending(redis, made) == 0
    said = await alive.ask(request)
    assert (said.status, said.word) == (200, "confirmed")
    await assert_agrees(db, redis, made)


async def test_a_claim_that_is_being_written_is_waited_for_and_not_released(
    db: "asyncpg.Connection[asyncpg.Record]",
    database_url: str,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,))
    slow, alive = await open_worker(**AT_ONCE), await open_worker()
    winner = await admit(slow, Phone.with_pass(signer, made).claim())
    writer = await asyncpg.connect(database_url)
    try:
        async with writer.transaction():
            await commit(writer, made.at_epoch(1), winner)
            sweeping = asyncio.create_task(alive.gate.sweep(made.release_id))

            async def blocked() -> bool:
                query = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
                return bool(await db.fetchval(query, writer.get_server_pid()))

            await until(blocked)
            assert await _pending(redis, made) == 1
        await sweeping
    finally:
        await writer.close()
    assert await held(db, made) == [(0, 1)]
    await assert_agrees(db, redis, made)


async def test_a_claim_that_is_not_overdue_is_left_alone(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db)
    request = Phone.with_pass(signer, made).claim()
    await admit(worker, request)
    await worker.gate.sweep(made.release_id)
    assert await _pending(redis, made) == 1
    assert (await worker.ask(request)).word == "confirmed"


async def test_nothing_is_released_while_postgresql_is_down(
    db: "asyncpg.Connection[asyncpg.Record]",
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
    tmp_path: object,
) -> None:
    made = await make_release(db, capacities=(1,))
    dead = await open_worker(**AT_ONCE)
    request = Phone.with_pass(signer, made).claim()
    await admit(dead, request)
    cut_off = await open_worker(database_url=SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}"))
    with pytest.raises(FileNotFoundError):
        await cut_off.gate.sweep(made.release_id)
    assert await _pending(redis, made) == 1
    # A winner cannot be told yes, and a loser is still told no, not finally.
    assert (await cut_off.ask(Phone.with_pass(signer, made).claim())).word == "full"
    await dead.gate.sweep(made.release_id)
    assert await held(db, made) == []
    await assert_agrees(db, redis, made)


async def test_a_place_given_back_while_the_waiter_was_on_the_way_goes_to_the_waiter(
    db: "asyncpg.Connection[asyncpg.Record]",
    engine: AsyncEngine,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,), waitlist_limit=3)
    worker = await open_worker()
    holder, waiter = Phone.with_pass(signer, made), Phone.with_pass(signer, made)
    await worker.ask(holder.claim(claim_id=(claim_id := new_id())))
    waiting = waiter.claim(waitlist=True)
    await admit(worker, waiting)
    # In PostgreSQL nobody waits yet, so the place is nobody's there.
    changed = await give_back(engine, holder, claim_id)
    assert changed == [claim_id]
    await worker.gate.settle(made.release_id, changed)
    assert (await seen_in_redis(redis, made)).parked == {(0, 1)}
    newcomer = await worker.ask(Phone.with_pass(signer, made).claim())
    assert (newcomer.word, newcomer.body["final"]) == ("full", False)
    assert (await worker.ask(waiting)).word == "waitlisted"
    await worker.gate.sweep(made.release_id)
    assert (await worker.ask(waiting)).word == "confirmed"
    await assert_agrees(db, redis, made)


async def test_a_parked_place_is_free_again_when_its_waiter_never_arrived(
    db: "asyncpg.Connection[asyncpg.Record]",
    engine: AsyncEngine,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,), waitlist_limit=3)
    worker, dead = await open_worker(), await open_worker(**AT_ONCE)
    holder = Phone.with_pass(signer, made)
    await worker.ask(holder.claim(claim_id=(claim_id := new_id())))
    await admit(dead, Phone.with_pass(signer, made).claim(waitlist=True))
    await worker.gate.settle(made.release_id, await give_back(engine, holder, claim_id))
    await worker.gate.sweep(made.release_id)
    await worker.gate.sweep(made.release_id)
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    await assert_agrees(db, redis, made)


async def test_a_change_that_nobody_told_the_gate_is_told_by_the_sweep(
    db: "asyncpg.Connection[asyncpg.Record]",
    engine: AsyncEngine,
    worker: Worker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,))
    holder = Phone.with_pass(signer, made)
    await worker.ask(holder.claim(claim_id=(claim_id := new_id())))
    await give_back(engine, holder, claim_id)
    await worker.gate.sweep(made.release_id)
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    await assert_agrees(db, redis, made)


async def test_news_in_the_wrong_order_frees_no_place_under_its_new_holder(
    db: "asyncpg.Connection[asyncpg.Record]",
    engine: AsyncEngine,
    worker: Worker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,), waitlist_limit=3)
    phones = [Phone.with_pass(signer, made) for _ in range(3)]
    ids = [new_id() for _ in phones]
    for phone, claim_id in zip(phones, ids, strict=True):
        await worker.ask(phone.claim(claim_id=claim_id, waitlist=True))
    # The place goes from the first to the second, and from the second to the third; the gate hears of that first.
    first = await give_back(engine, phones[0], ids[0])
    second = await give_back(engine, phones[1], ids[1])
    await worker.gate.settle(made.release_id, second)
    await worker.gate.settle(made.release_id, first)
    await assert_agrees(db, redis, made)
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "sold_out"


async def test_a_claim_of_which_the_sweep_knows_an_other_release_s_id_is_released(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made, other = await make_release(db, capacities=(1,)), await make_release(db, start_hours=(90,))
    dead, alive = await open_worker(**AT_ONCE), await open_worker()
    claim_id = new_id()
    assert (await alive.ask(Phone.with_pass(signer, other).claim(claim_id=claim_id))).word == "confirmed"
    await admit(dead, Phone.with_pass(signer, made).claim(claim_id=claim_id))
    await alive.gate.sweep(made.release_id)
    await assert_agrees(db, redis, made)
    assert (await alive.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"


async def test_places_added_before_a_lost_rebuild_are_found_by_the_sweep(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner
) -> None:
    made = await make_release(db, capacities=(1,))
    web, sweeper = await open_worker(), await open_worker()
    assert (await web.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    assert (await web.ask(Phone.with_pass(signer, made).claim())).word in {"full", "sold_out"}
    # As a change of capacity does, whose process then dies before the rebuild.
    await db.execute("INSERT INTO place (pool_id, place_no) VALUES ($1, 2)", made.pools[0])
    await db.execute("UPDATE release SET epoch = epoch + 1 WHERE id = $1", made.release_id)

    # The first sweep finds that the epoch is over, the next one the state that was made anew.
    for _ in range(2):
        await sweeper.gate.sweep(made.release_id)

    assert (await web.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
