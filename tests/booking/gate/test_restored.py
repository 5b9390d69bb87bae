"""PostgreSQL is set back while Redis keeps its state: what Redis alone has confirmed is not repeated."""

from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

from app.booking.gate.keys import EpochKeys
from app.booking.gate.passes import PassSigner
from app.core.ids import new_id
from tests.booking.gate.agreement import seen_in_redis
from tests.booking.gate.builders import Phone, epoch_of, held, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.waits import until

pytestmark = pytest.mark.anyio


async def test_one_lost_claim_is_noticed_beside_another_that_is_pending_and_written(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(2,))
    before = await open_worker()
    lost, kept = (Phone.with_pass(signer, made).claim() for _ in range(2))
    assert (await before.ask(lost)).word == "confirmed"
    # With this call goes the confirmation of the first; its own is to go with the next.
    assert (await before.ask(kept)).word == "confirmed"
    await before.gate.close()
    assert await redis.zcard(EpochKeys(made.release_id, await epoch_of(db, made)).pending) == 1  # pyright: ignore[reportGeneralTypeIssues] - sync and async in one type
    # As after a back-up that has the one and not the other.
    lost_id = UUID(lost.path.rpartition("/")[2])
    await db.execute("DELETE FROM booking WHERE claim_id = $1", lost_id)
    await db.execute("DELETE FROM claim WHERE id = $1", lost_id)
    after = await open_worker()
    # Judged anew: it gets the place that is free, and the yes stands in PostgreSQL.
    assert (await after.ask(lost)).word == "confirmed"
    assert await epoch_of(db, made) == 2
    assert await held(db, made) == [(0, 1), (0, 2)]


async def test_a_state_that_was_used_unseen_is_looked_at_when_postgresql_answers_again(
    db: "asyncpg.Connection[asyncpg.Record]",
    database_url: str,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(2,))
    before = await open_worker()
    lost = Phone.with_pass(signer, made).claim()
    assert (await before.ask(lost)).word == "confirmed"

    async def confirmed() -> bool:
        return not (await seen_in_redis(redis, made)).pending

    await until(confirmed)
    another = await make_release(db)
    await before.gate.release(another.release_id)
    await before.gate.close()
    await db.execute("DELETE FROM booking")
    await db.execute("DELETE FROM claim")
    after = await open_worker(sweep_interval_ms=50)
    # It knows by this since when PostgreSQL runs, which is as long in the end.
    await after.gate.release(another.release_id)
    locked = await asyncpg.connect(database_url)
    try:
        async with locked.transaction():
            await locked.execute("LOCK TABLE claim")
            assert (await after.gate.availability(made.release_id)).release.epoch == 1
    finally:
        await locked.close()

    async def made_anew() -> bool:
        return (await after.gate.release(made.release_id)).epoch == 2

    await until(made_anew)
    assert (await after.ask(lost)).word == "confirmed"
    assert await held(db, made) == [(0, 1)]


async def test_a_claim_id_of_another_release_makes_no_state_look_as_if_it_knew_more(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner
) -> None:
    one, other = [await make_release(db, capacities=(2,)) for _ in range(2)]
    before = await open_worker()
    claim_id = new_id()
    assert (await before.ask(Phone.with_pass(signer, one).claim(claim_id=claim_id))).word == "confirmed"
    assert (await before.ask(Phone.with_pass(signer, other).claim(claim_id=claim_id))).word == "idempotency_mismatch"
    after = await open_worker()
    assert (await after.gate.release(other.release_id)).epoch == 1
