"""Several server processes, phones on real sockets; one of the servers is killed in the middle."""

import asyncio
import json
from itertools import cycle

import asyncpg
import httpx2
import pytest
from redis.asyncio import Redis

from app.booking.gate.desk import Request
from app.booking.gate.passes import PassSigner
from app.core.settings import Settings
from tests.booking.gate.agreement import assert_agrees, seen_in_redis
from tests.booking.gate.builders import Phone, Said, held, make_release, words
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.waits import until
from tests.races.servers import serving_processes

pytestmark = pytest.mark.anyio

_READY_SECONDS = 30.0
_TRIES = 60


async def _ask(
    client: httpx2.AsyncClient, address: str, phone: Phone, *ordinals: int, request: Request | None = None
) -> Said:
    request = request or phone.claim(*ordinals)
    response = await client.put(address + request.path, content=request.body, headers=phone.headers)
    body = json.loads(response.content)
    return Said(response.status_code, body.get("code") or body["state"], body)


async def test_two_hundred_phones_at_three_servers_leave_one_winner(
    db: "asyncpg.Connection[asyncpg.Record]", settings: Settings, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1,))
    with serving_processes(settings, count=3) as servers:
        addresses = cycle([server.address for server in servers])
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(limits=limits, timeout=_READY_SECONDS) as client:
            answers = await asyncio.gather(
                *(_ask(client, next(addresses), Phone.with_pass(signer, made)) for _ in range(200))
            )
        told = words(answers)
        assert told["confirmed"] == 1, told
        assert told["confirmed"] + told["full"] + told["sold_out"] == 200
        assert await held(db, made) == [(0, 1)]
        await assert_agrees(db, redis, made)


async def test_a_server_killed_in_the_crowd_loses_nothing_that_was_said(
    db: "asyncpg.Connection[asyncpg.Record]",
    settings: Settings,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(60, 60))
    # Orphans of the killed server are due soon after.
    quick = settings.model_copy(update={"commit_timeout_ms": 1_000, "pending_deadline_ms": 1_500})
    with serving_processes(quick, count=2) as (doomed, survivor):
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(limits=limits, timeout=_READY_SECONDS) as client:
            for server in (doomed, survivor):
                ready = await client.get(f"{server.address}/v1/releases/{made.release_id}/availability")
                assert ready.status_code == 200
            answered = asyncio.Semaphore(0)
            yes: list[Said] = []

            async def insist(n: int) -> Said:
                """Ask with one id until there is an answer that stands, at the other server if this one is gone."""
                phone = Phone.with_pass(signer, made)
                request = phone.claim(n % 2)
                address = (doomed, survivor)[n // 2 % 2].address
                for _ in range(_TRIES):
                    try:
                        said = await _ask(client, address, phone, request=request)
                    except httpx2.TransportError:
                        address = survivor.address
                        continue
                    answered.release()
                    if said.word == "confirmed":
                        yes.append(said)
                    if said.word != "pending" and said.status != 503:
                        return said
                    await asyncio.sleep(said.body["retry_after_ms"] / 1000)
                raise AssertionError("no answer")

            async def kill() -> None:
                for _ in range(40):
                    await answered.acquire()
                doomed.kill()

            *answers, _ = await asyncio.gather(*(insist(n) for n in range(400)), kill())
            sweeper = await open_worker()

            async def swept() -> bool:
                await sweeper.gate.sweep(made.release_id)
                return not (await seen_in_redis(redis, made)).pending

            await until(swept)
            # Every yes that any phone heard is there, each on its own place.
            there = await held(db, made)
            ordinals = {str(pool_id): ordinal for ordinal, pool_id in enumerate(made.pools)}
            heard = {(ordinals[said.place[0]], said.place[1]) for said in yes}
            assert len(heard) == len(yes)
            assert heard <= set(there)
            assert len(there) == len(set(there))
            # Nobody was told "sold out" for good while a place was to come back: those who asked on got the rest.
            late = [await _ask(client, survivor.address, Phone.with_pass(signer, made), 0, 1) for _ in range(130)]
            assert len(await held(db, made)) == 120
            assert late[-1].word == "sold_out"
            assert words(said for said in answers if said is not None)["confirmed"] == len(yes)
            await assert_agrees(db, redis, made)
