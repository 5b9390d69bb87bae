"""A worker whose lines lead to an old primary that lives on: it looks at PostgreSQL now and then, and finds out."""

import asyncio
from unittest.mock import Mock

import asyncpg
import pytest
from pydantic import SecretStr

from app.booking.gate import rooms
from app.booking.gate.nodes import Nodes
from app.booking.gate.passes import PassSigner
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
    db: "asyncpg.Connection[asyncpg.Record]",
    open_worker: OpenWorker,
    signer: PassSigner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = await make_release(db)
    worker = await open_worker(sweep_interval_ms=20)
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    looks = 0

    async def look(_nodes: Nodes) -> None:
        nonlocal looks
        looks += 1
        raise KeyError("cluster_current_epoch")

    log = Mock()
    monkeypatch.setattr(Nodes, "look", look)
    monkeypatch.setattr(rooms, "log", log)
    asked = Phone.with_pass(signer, made).claim()

    async def looked() -> bool:
        # Who has no release entered looks at nothing.
        await worker.ask(asked)
        return looks > 3

    await until(looked)
    log.exception.assert_called_once_with("gate_look_failed")


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
