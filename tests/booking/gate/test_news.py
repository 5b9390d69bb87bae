"""What PostgreSQL decides while a rebuild is under way is not lost between the two states."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.link import ACTIVATE, Argument, Link, Script
from app.booking.gate.passes import PassSigner
from tests.booking.gate.builders import Phone, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.steps import give_back

pytestmark = pytest.mark.anyio


async def test_a_place_given_back_during_a_rebuild_is_free_afterwards(
    db: "asyncpg.Connection[asyncpg.Record]",
    open_worker: OpenWorker,
    signer: PassSigner,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = await make_release(db, capacities=(1,))
    rebuilder, other = await open_worker(), await open_worker()
    family = Phone.with_pass(signer, made)
    claim_id = UUID((await other.ask(family.claim())).body["claim"])
    is_loaded, may_go_on = asyncio.Event(), asyncio.Event()
    run = Link.run

    async def stop_before_activation(
        link: Link, script: Script, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> bytes:
        if script is ACTIVATE:
            is_loaded.set()
            await may_go_on.wait()
        return await run(link, script, keys, arguments)

    monkeypatch.setattr(Link, "run", stop_before_activation)
    rebuilding = asyncio.create_task(rebuilder.gate.rebuild(made.release_id))
    await is_loaded.wait()
    changed = await give_back(engine, family, claim_id)
    await other.gate.settle(made.release_id, changed)
    may_go_on.set()
    await rebuilding
    for _ in range(2):
        await other.gate.sweep(made.release_id)

    assert (await other.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
