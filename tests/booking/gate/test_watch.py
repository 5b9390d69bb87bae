"""A worker whose lines lead to an old primary that lives on: it looks at PostgreSQL now and then, and finds out."""

import asyncio

import asyncpg
import pytest
from pydantic import SecretStr

from app.booking.gate.passes import PassSigner
from app.booking.gate.rooms import Rooms
from tests.booking.gate.builders import Phone, epoch_of, held, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.waits import until

pytestmark = pytest.mark.anyio


async def test_a_worker_at_an_old_primary_does_not_say_sold_out_for_ever(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, second_redis_url: str
) -> None:
    made = await make_release(db, capacities=(1,))
    at_the_old = await open_worker(sweep_interval_ms=50)
    first = Phone.with_pass(signer, made).claim()
    assert (await at_the_old.ask(first)).word == "confirmed"

    async def sold_out() -> bool:
        return (await at_the_old.ask(Phone.with_pass(signer, made).claim())).word == "sold_out"

    await until(sold_out)
    at_the_new = await open_worker(redis_url=SecretStr(second_redis_url))
    # The new primary knows nothing yet; its state is made from PostgreSQL, and so the epoch of the old one is over.
    assert (await at_the_new.ask(Phone.with_pass(signer, made).claim())).word == "sold_out"
    assert await epoch_of(db, made) == 2
    await db.execute("UPDATE booking SET status = 'cancelled' WHERE pool_id = $1", made.pools[0])
    late = Phone.with_pass(signer, made).claim()

    async def booked() -> bool:
        return (await at_the_old.ask(late)).word == "confirmed"

    # A refusal never looks at PostgreSQL: without the watch this would be "sold out" as long as the lines last.
    await until(booked)
    assert await held(db, made) == [(0, 1)]


async def test_a_look_that_fails_is_told_once_and_is_not_the_last(
    open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = 0

    async def look(_rooms: Rooms) -> None:
        nonlocal looks
        looks += 1
        raise KeyError("cluster_current_epoch")

    # Not what it asks: who enters a release asks that too.
    monkeypatch.setattr(Rooms, "_look_around", look)
    await open_worker(sweep_interval_ms=20)

    async def looked() -> bool:
        return looks > 3

    await until(looked)
    assert sum("gate_look_failed" in record.getMessage() for record in caplog.records) == 1


async def test_a_gate_closes_in_the_middle_of_a_look(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner
) -> None:
    made = await make_release(db, capacities=(1,))
    for _ in range(20):
        worker = await open_worker(sweep_interval_ms=1)
        await worker.ask(Phone.with_pass(signer, made).claim())
        # From here it looks without end. A cancellation that arrives as a connection is found is lost.
        await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            await worker.gate.close()
