"""The state of a release that is over leaves Redis; nothing that was said, or is still on its way, leaves with it."""

from datetime import timedelta
from typing import cast

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.keys import LOADING_EXPIRY_SECONDS, EpochKeys, meta_key
from app.booking.gate.passes import PassSigner
from app.booking.gate.retirement import KEPT_MS
from app.core.clock import Clock
from app.core.ids import new_id
from tests.booking.gate.agreement import assert_agrees, command, epoch_in_force, seen_in_redis
from tests.booking.gate.builders import MadeRelease, Phone, Worker, epoch_of, held, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.steps import admit, give_back
from tests.booking.gate.waits import until

pytestmark = pytest.mark.anyio


async def _age(redis: Redis, db: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease) -> None:
    """Make a release one that closed, and whose state was built, long enough ago. Its session is still to come."""
    long_ago_ms = int((Clock().now() - timedelta(days=2)).timestamp() * 1000)
    await command(redis, "HSET", meta_key(made.release_id), "closes_ms", long_ago_ms, "built_ms", long_ago_ms)
    await db.execute(
        "UPDATE release SET opens_at = opens_at - interval '9 days', closes_at = now() - interval '2 days'"
        " WHERE id = $1",
        made.release_id,
    )


async def _keys(redis: Redis, made: MadeRelease) -> set[str]:
    found = cast("list[bytes]", await command(redis, "KEYS", f"ct:{{{made.release_id.hex}}}:*"))
    return {key.decode() for key in found}


async def _confirmed(redis: Redis, made: MadeRelease) -> None:
    """Wait until the gate has heard of every commit: confirmations ride on a later call."""

    async def nothing_pending() -> bool:
        return not (await seen_in_redis(redis, made)).pending

    await until(nothing_pending)


async def test_a_release_that_is_over_leaves_no_key_in_redis(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1, 2), waitlist_limit=2)
    for _ in range(2):
        assert (await worker.ask(Phone.with_pass(signer, made).claim(waitlist=True))).status < 300
    await _confirmed(redis, made)
    await _age(redis, db, made)
    assert await _keys(redis, made)
    await worker.gate.retire(made.release_id)
    assert await _keys(redis, made) == set()


async def test_after_the_removal_a_place_can_be_given_back_and_the_state_is_made_anew(
    db: "asyncpg.Connection[asyncpg.Record]",
    engine: AsyncEngine,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,), waitlist_limit=2)
    worker, later = await open_worker(), await open_worker()
    holder, waiter = Phone.with_pass(signer, made), Phone.with_pass(signer, made)
    await worker.ask(holder.claim(claim_id=(claim_id := new_id())))
    waiting = waiter.claim(waitlist=True)
    assert (await worker.ask(waiting)).word == "waitlisted"
    await _confirmed(redis, made)
    await _age(redis, db, made)
    await worker.gate.retire(made.release_id)
    assert await _keys(redis, made) == set()

    changed = await give_back(engine, holder, claim_id)
    assert len(changed) == 2
    await later.gate.settle(made.release_id, changed)

    assert (await later.ask(waiting)).word == "confirmed"
    counts = await later.gate.counts(made.release_id)
    assert counts is not None
    assert (counts["held"], counts["free"], counts["waiting"], counts["pending"]) == (1, 0, 0, 0)
    assert len(await held(db, made)) == 1
    await assert_agrees(db, redis, made)


async def test_a_worker_that_knew_the_state_finds_it_again(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1,))
    web, sweeper = await open_worker(), await open_worker()
    request = Phone.with_pass(signer, made).claim()
    said = await web.ask(request)
    await _confirmed(redis, made)
    await _age(redis, db, made)
    await sweeper.gate.retire(made.release_id)
    assert await _keys(redis, made) == set()
    assert (await web.ask(request)).body == said.body
    assert (await web.ask(Phone.with_pass(signer, made).claim())).word == "closed"


async def test_a_claim_that_is_pending_keeps_the_state_and_finds_its_place(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1,))
    dead, alive = await open_worker(), await open_worker()
    request = Phone.with_pass(signer, made).claim()
    await admit(dead, request)
    await _age(redis, db, made)
    await alive.gate.retire(made.release_id)
    assert len((await seen_in_redis(redis, made)).pending) == 1
    assert (await alive.ask(request)).word == "confirmed"


async def test_a_claim_whose_worker_died_is_settled_and_then_the_state_may_go(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1,))
    dead, alive = await open_worker(pending_deadline_ms=0), await open_worker()
    await admit(dead, Phone.with_pass(signer, made).claim())
    await _age(redis, db, made)
    await alive.gate.retire(made.release_id)
    assert await _keys(redis, made) == set()
    assert await db.fetchval("SELECT state FROM claim WHERE release_id = $1", made.release_id) == "void"


async def test_a_place_given_back_of_which_the_gate_has_not_heard_is_not_forgotten(
    db: "asyncpg.Connection[asyncpg.Record]",
    engine: AsyncEngine,
    worker: Worker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,))
    holder = Phone.with_pass(signer, made)
    await worker.ask(holder.claim(claim_id=(claim_id := new_id())))
    await _confirmed(redis, made)
    await _age(redis, db, made)
    await give_back(engine, holder, claim_id)
    await worker.gate.retire(made.release_id)
    assert await _keys(redis, made) == set()
    assert not await db.fetchval(
        "SELECT count(*) FROM claim WHERE release_id = $1 AND gate_revision < revision", made.release_id
    )
    counts = await worker.gate.counts(made.release_id)
    assert counts is not None
    assert (counts["held"], counts["free"]) == (0, 1)


@pytest.mark.parametrize("field", ["closes_ms", "built_ms"])
async def test_a_state_stays_a_day_after_closing_and_after_it_was_made_anew(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis, field: str
) -> None:
    made = await make_release(db)
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    await _confirmed(redis, made)
    await _age(redis, db, made)
    nearly_ms = Clock().now_ms() - KEPT_MS + 60_000
    await command(redis, "HSET", meta_key(made.release_id), field, nearly_ms)
    await worker.gate.retire(made.release_id)
    assert await epoch_in_force(redis, made) == await epoch_of(db, made)
    await command(redis, "HSET", meta_key(made.release_id), field, nearly_ms - 120_000)
    await worker.gate.retire(made.release_id)
    assert await _keys(redis, made) == set()


async def test_keys_of_an_epoch_that_is_not_in_force_go_by_themselves_and_no_others(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made, lost = await make_release(db), await make_release(db)
    for one in (made, lost):
        assert (await worker.ask(Phone.with_pass(signer, one).claim())).word == "confirmed"
    # What a process leaves behind that dies between putting an epoch in force and removing the one before.
    old = EpochKeys(made.release_id, 0).claims
    await command(redis, "HSET", old, "claim", "packed")
    # And what is left where the server evicted the one key that says which epoch counts.
    await command(redis, "DEL", meta_key(lost.release_id))
    # A rebuild that is loading has an expiry already, which stays as it is.
    loading = EpochKeys(made.release_id, 9).pools
    await command(redis, "SET", loading, "packed", "EX", 60)

    seen = {release_id async for release_ids in worker.gate.states() for release_id in release_ids}

    assert made.release_id in seen
    assert lost.release_id not in seen
    left_seconds = {
        key: await command(redis, "TTL", key)
        for made_or_lost in (made, lost)
        for key in await _keys(redis, made_or_lost)
    }
    expiring = {key for key, seconds in left_seconds.items() if 0 <= seconds <= LOADING_EXPIRY_SECONDS}
    assert expiring == {old, loading, *await _keys(redis, lost)}
    assert left_seconds[loading] <= 60
    assert (await worker.ask(Phone.with_pass(signer, lost).claim())).word == "confirmed"
    await assert_agrees(db, redis, lost)


async def test_keys_of_an_epoch_in_force_have_no_expiry(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db)
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    await worker.gate.rebuild(made.release_id)
    async for _ in worker.gate.states():
        pass
    assert {await command(redis, "TTL", key) for key in await _keys(redis, made)} == {-1}
