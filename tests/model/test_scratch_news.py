# ruff: noqa
# pyright: basic
import asyncio
from datetime import timedelta
import pytest
from app.booking.claims import service as claims
from app.booking.gate.link import Link, ACTIVATE
from app.core.clock import Clock
from app.core.db import transaction
from tests.booking.gate.conftest import *  
from tests.booking.gate.builders import *
from tests.booking.gate.agreement import assert_agrees
pytestmark = pytest.mark.anyio

async def test_news(db, open_worker, signer, redis, engine, monkeypatch):
    made = await make_release(db, capacities=(1,))
    a, b = await open_worker(), await open_worker()
    ann = Phone.with_pass(signer, made)
    said = await b.ask(ann.claim())
    assert said.word == "confirmed"
    cid = UUID(said.body["claim"])
    at, go = asyncio.Event(), asyncio.Event()
    run = Link.run
    async def slow(self, script, keys, arguments):
        if script is ACTIVATE:
            at.set(); await go.wait()
        return await run(self, script, keys, arguments)
    monkeypatch.setattr(Link, "run", slow)
    task = asyncio.create_task(a.gate.rebuild(made.release_id))
    await at.wait()
    async with transaction(engine) as session:
        _, changed = await claims.give_back(session, claim_id=cid, account_id=ann.account, only_booking_id=None, now=Clock().now(), notice=timedelta(hours=1))
    await b.gate.settle(made.release_id, changed)
    go.set()
    await task
    for _ in range(3):
        await b.gate.sweep(made.release_id)
        await a.gate.sweep(made.release_id)
    print(await db.fetch("select revision, gate_revision, state from claim"))
    said = await b.ask(Phone.with_pass(signer, made).claim())
    print("newcomer hears", said.word, said.body)
    assert said.word == "confirmed"
