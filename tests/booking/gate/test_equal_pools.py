"""Pools with equal counts, named in one call, are not taken for one another."""

import asyncio

import asyncpg
import pytest
from redis.asyncio import Redis

from app.booking.gate.keys import EpochKeys
from app.booking.gate.passes import PassSigner
from tests.booking.gate.agreement import assert_agrees, command
from tests.booking.gate.builders import MadeRelease, Phone, Said, Worker, epoch_of, make_release
from tests.booking.gate.waits import until

pytestmark = pytest.mark.anyio


async def _one_for_each(worker: Worker, signer: PassSigner, made: MadeRelease) -> list[Said]:
    """Ask for a place in each pool, all in one tick, and so in one call."""
    phones = [Phone.with_pass(signer, made) for _ in made.pools]
    return await asyncio.gather(
        *(worker.ask(phone.claim(ordinal, waitlist=True)) for ordinal, phone in enumerate(phones))
    )


@pytest.mark.parametrize("waitlist_limit", [0, 2])
async def test_each_gives_its_own_places_confirms_its_own_claims_and_numbers_its_own_waiters(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis, waitlist_limit: int
) -> None:
    made = await make_release(db, capacities=(1, 1), waitlist_limit=waitlist_limit)
    await worker.gate.release(made.release_id)
    held = await _one_for_each(worker, signer, made)
    assert [said.word for said in held] == ["confirmed", "confirmed"]

    async def all_confirmed() -> bool:
        return await command(redis, "ZCARD", EpochKeys(made.release_id, 1).pending) == 0

    await until(all_confirmed)
    for position in range(1, waitlist_limit + 1):
        waiting = await _one_for_each(worker, signer, made)
        assert [said.word for said in waiting] == ["waitlisted", "waitlisted"]
        assert [said.body["bookings"][0]["position"] for said in waiting] == [position, position]
    assert [said.word for said in await _one_for_each(worker, signer, made)] == ["sold_out", "sold_out"]
    # Nothing had to be made anew for it.
    assert await epoch_of(db, made) == 1
    await assert_agrees(db, redis, made)
