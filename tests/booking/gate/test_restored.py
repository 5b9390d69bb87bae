"""PostgreSQL is set back while Redis keeps its state: what Redis alone has confirmed is not repeated."""

from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

from app.booking.gate.keys import EpochKeys
from app.booking.gate.passes import PassSigner
from tests.booking.gate.builders import Phone, epoch_of, held, make_release
from tests.booking.gate.conftest import OpenWorker

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
