"""Where Redis and PostgreSQL contradict each other, nobody is told a final no: the state is made anew."""

import json
from uuid import UUID

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from app.booking.gate.desk import Request
from app.booking.gate.keys import EpochKeys
from app.booking.gate.passes import PassSigner
from app.core.ids import new_id
from tests.booking.gate.agreement import assert_agrees, command, seen_in_redis
from tests.booking.gate.builders import MadeRelease, Phone, Worker, epoch_of, make_release
from tests.booking.gate.steps import ask_until_decided
from tests.booking.gate.waits import until

pytestmark = pytest.mark.anyio


async def assert_made_anew(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis, made: MadeRelease
) -> None:
    """Have somebody else ask, who gets a place in the next epoch."""
    said = await ask_until_decided(worker, Phone.with_pass(signer, made))
    assert said.word == "confirmed"
    assert await epoch_of(db, made) == 2
    await assert_agrees(db, redis, made)


async def test_counts_that_were_lost_are_a_contradiction_and_not_sold_out(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db)
    await worker.ask(Phone.with_pass(signer, made).claim())
    await command(redis, "DEL", EpochKeys(made.release_id, 1).pools)
    await assert_made_anew(db, worker, signer, redis, made)


async def test_a_lost_free_map_is_a_contradiction_and_not_sold_out(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db)
    await worker.ask(Phone.with_pass(signer, made).claim())
    await command(redis, "DEL", EpochKeys(made.release_id, 1).free_map(0))
    await assert_made_anew(db, worker, signer, redis, made)


async def _pending_again(worker: Worker, signer: PassSigner, redis: Redis, made: MadeRelease) -> UUID:
    """Book a place, and have Redis take the claim for pending although its pool counts no such claim."""
    claim_id = new_id()
    await worker.ask(Phone.with_pass(signer, made).claim(claim_id=claim_id))
    keys = EpochKeys(made.release_id, 1)

    async def confirmed() -> bool:
        return await command(redis, "ZCARD", keys.pending) == 0

    await until(confirmed)
    await command(redis, "ZADD", keys.pending, 1, claim_id.bytes)
    return claim_id


async def test_a_pending_claim_in_a_pool_that_counts_none_is_a_contradiction(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db)
    claim_id = await _pending_again(worker, signer, redis, made)
    # Rides on the call that the next claim gets.
    worker.gate.entered[made.release_id.bytes].admission.confirm(claim_id.bytes)
    await assert_made_anew(db, worker, signer, redis, made)


@pytest.mark.parametrize("way", ["a call of its own", "the sweep"])
async def test_a_contradiction_with_which_nobody_waits_leads_to_a_rebuild_too(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis, way: str
) -> None:
    made = await make_release(db)
    claim_id = await _pending_again(worker, signer, redis, made)
    if way == "the sweep":
        await worker.gate.sweep(made.release_id)
    else:
        worker.gate.entered[made.release_id.bytes].admission.confirm(claim_id.bytes)

    async def condemned() -> bool:
        return made.release_id.bytes not in worker.gate.entered

    await until(condemned)
    await assert_made_anew(db, worker, signer, redis, made)


async def test_no_newcomer_passes_a_waiter_even_where_a_place_is_free(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(2,), waitlist_limit=3)
    for _ in range(3):
        await worker.ask(Phone.with_pass(signer, made).claim(waitlist=True))
    keys = EpochKeys(made.release_id, 1)
    # No path of ours frees a place while somebody waits; should one ever, the script still knows the order.
    await db.execute("UPDATE booking SET status = 'cancelled' WHERE pool_id = $1 AND place_no = 1", made.pools[0])
    seen = await seen_in_redis(redis, made)
    counts = msgspec.structs.replace(seen.counts[0], free=1, hint_byte=0)
    await command(redis, "HSET", keys.pools, 0, counts.pack())
    await command(redis, "SETBIT", keys.free_map(0), 1, 1)
    said = await worker.ask(Phone.with_pass(signer, made).claim())
    assert said.word in {"full", "sold_out"}
    poll = await worker.desk.answer(Request("GET", f"/v1/releases/{made.release_id}/availability", {}, b""))
    assert [(pool["left"], pool["state"]) for pool in json.loads(poll.body)["pools"]] == [(1, "full")]
    assert (await worker.ask(Phone.with_pass(signer, made).claim(waitlist=True))).word == "waitlisted"


async def test_a_redis_that_gives_a_place_away_twice_is_found_out_and_rebuilt(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(3,))
    first = await worker.ask(Phone.with_pass(signer, made).claim())
    # A lying bit: the place that was just given is free again.
    await command(redis, "SETBIT", EpochKeys(made.release_id, 1).free_map(0), first.place[1], 1)
    second = await ask_until_decided(worker, Phone.with_pass(signer, made))
    assert second.word == "confirmed"
    assert second.place != first.place
    assert await epoch_of(db, made) == 2
    await assert_agrees(db, redis, made)
