"""PostgreSQL slow, gone, or cut off in the middle; phones that hang up. What was said stays true."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import asyncpg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from app.booking.gate.desk import Request
from app.booking.gate.passes import PassSigner
from app.core.ids import new_id
from tests.booking.gate.agreement import assert_agrees, command, seen_in_redis
from tests.booking.gate.builders import MadeRelease, Phone, Said, Worker, held, make_release, words
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.waits import until
from tests.numbers import rises
from tests.relay import relaying

pytestmark = pytest.mark.anyio

_LOCK_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('release:' || $1::uuid::text, 0))"
_WAITING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'clocktower-gate' AND wait_event_type = 'Lock'
"""


@asynccontextmanager
async def _release_locked(database_url: str, made: MadeRelease) -> AsyncGenerator[None]:
    """Hold the lock that a rebuild holds: no commit of this release gets through meanwhile."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute(_LOCK_ALONE, made.release_id)
            yield
    finally:
        await connection.close()


async def _until_gates_wait(db: "asyncpg.Connection[asyncpg.Record]", count: int = 1) -> list[int]:
    """Return the backends of the gate that wait for a lock, once there are so many."""
    pids: list[int] = []

    async def waiting() -> bool:
        pids[:] = [row["pid"] for row in await db.fetch(_WAITING)]
        return len(pids) >= count

    await until(waiting)
    return pids


async def test_a_connection_killed_before_the_commit_costs_a_moment_and_no_place(
    db: "asyncpg.Connection[asyncpg.Record]",
    database_url: str,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db)
    worker = await open_worker()
    request = Phone.with_pass(signer, made).claim()
    await worker.gate.release(made.release_id)
    async with _release_locked(database_url, made):
        asking = asyncio.create_task(worker.ask(request))
        (pid,) = await _until_gates_wait(db)
        assert await db.fetchval("SELECT pg_terminate_backend($1)", pid)

        async def on_another_connection() -> bool:
            return await _until_gates_wait(db) != [pid]

        await until(on_another_connection)
    said = await asking
    assert (said.status, said.word) == (201, "confirmed")
    again = await worker.ask(request)
    assert (again.status, again.body) == (200, said.body)
    assert len(await held(db, made)) == 1
    await assert_agrees(db, redis, made)


async def test_a_commit_whose_reply_was_lost_gives_the_retry_the_same_place(
    db: "asyncpg.Connection[asyncpg.Record]",
    database_url: str,
    tmp_path: Path,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,))
    address = urlsplit(database_url)
    query = parse_qs(address.query)
    socket_name = f".s.PGSQL.{query['port'][0]}"
    relayed_url = urlunsplit(address._replace(query=urlencode({"host": str(tmp_path), "port": query["port"][0]})))
    async with relaying(tmp_path / socket_name, Path(query["host"][0]) / socket_name) as relay:
        behind = await open_worker(database_url=SecretStr(relayed_url))
        other = await open_worker()
        # Its connection stands before the answers begin to be lost.
        first = await behind.ask(Phone.with_pass(signer, warm := await make_release(db)).claim())
        assert first.word == "confirmed"
        await behind.gate.release(made.release_id)
        request = Phone.with_pass(signer, made).claim()
        relay.answers.swallows = True
        asking = asyncio.create_task(behind.ask(request))

        async def written() -> bool:
            return await held(db, made) == [(0, 1)]

        await until(written)
        await relay.answers.swallowed.wait()
        elsewhere = await other.ask(request)
        relay.answers.swallows = False
        with rises("claims_in_doubt_settled", by=1, fate="booked"):
            relay.cut()
            said = await asking
        again = await behind.ask(request)
        assert {said.word, elsewhere.word, again.word} == {"confirmed"}
        assert said.body == elsewhere.body == again.body
        await assert_agrees(db, redis, made)
        await assert_agrees(db, redis, warm)
        await behind.gate.close()


async def test_a_script_whose_reply_was_lost_gives_the_retry_the_place_that_it_took(
    db: "asyncpg.Connection[asyncpg.Record]",
    redis_url: str,
    tmp_path: Path,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,))
    socket_path = tmp_path / "valkey.sock"
    async with relaying(socket_path, Path(urlsplit(redis_url).path)) as relay:
        worker = await open_worker(redis_url=SecretStr(f"unix://{socket_path}"))
        # The script is known to the server from here on, so what is lost is an answer and not "no such script".
        await worker.ask(Phone.with_pass(signer, warm := await make_release(db)).claim())
        await worker.gate.release(made.release_id)
        request = Phone.with_pass(signer, made).claim()
        relay.answers.swallows = True
        asking = asyncio.create_task(worker.ask(request))
        await relay.answers.swallowed.wait()
        relay.answers.swallows = False
        relay.cut()
        said = await asking
        assert (said.status, said.word) == (503, "gate_unreachable")
        # Nothing was sent twice behind the phone's back, and nobody wrote what nobody heard of.
        assert len((await seen_in_redis(redis, made)).pending) == 1
        assert await held(db, made) == []
        again = await worker.ask(request)
        assert (again.status, again.word) == (200, "confirmed")
        await assert_agrees(db, redis, made)
        await assert_agrees(db, redis, warm)
        await worker.gate.close()


async def test_a_phone_that_hangs_up_between_script_and_commit_finds_its_place_when_it_asks_again(
    db: "asyncpg.Connection[asyncpg.Record]",
    database_url: str,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,))
    worker = await open_worker()
    request = Phone.with_pass(signer, made).claim()
    await worker.gate.release(made.release_id)
    async with _release_locked(database_url, made):
        asking = asyncio.create_task(worker.ask(request))
        await _until_gates_wait(db)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    async def written() -> bool:
        return await held(db, made) == [(0, 1)]

    # It is written though nobody listens any more.
    await until(written)
    again = await worker.ask(request)
    assert (again.status, again.word) == (200, "confirmed")
    await assert_agrees(db, redis, made)


async def test_while_postgresql_is_stuck_winners_hear_202_and_losers_are_still_answered(
    db: "asyncpg.Connection[asyncpg.Record]",
    database_url: str,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(3,))
    worker = await open_worker(commit_wait_ms=100)
    requests = [Phone.with_pass(signer, made).claim() for _ in range(3)]
    await worker.gate.release(made.release_id)
    async with _release_locked(database_url, made):
        winners = await asyncio.gather(*(worker.ask(request) for request in requests))
        assert [(said.status, said.word) for said in winners] == [(202, "pending")] * 3
        assert all(said.body["retry_after_ms"] > 0 for said in winners)
        async with asyncio.timeout(2):
            losers = await asyncio.gather(*(worker.ask(Phone.with_pass(signer, made).claim()) for _ in range(500)))
        # A claim of the pool is not settled yet, so no "no" is final; and no more winners than places.
        assert words(losers) == {"full": 500}
        assert all(said.body["final"] is False for said in losers)
        again = await worker.ask(requests[0])
        assert (again.status, again.word) == (202, "pending")
    after = [await _asked_until_decided(worker, request) for request in requests]
    assert {said.word for said in after} == {"confirmed"}
    assert {said.status for said in after} == {200}
    assert len({said.place for said in after}) == 3
    await assert_agrees(db, redis, made)
    loser = await worker.ask(Phone.with_pass(signer, made).claim())
    assert (loser.word, loser.body["final"]) == ("sold_out", True)


async def _asked_until_decided(worker: Worker, request: Request) -> Said:
    """Ask with the same claim id until the answer is not "pending", as a phone does."""
    said = [await worker.ask(request)]

    async def decided() -> bool:
        if said[-1].word == "pending":
            said.append(await worker.ask(request))
        return said[-1].word != "pending"

    await until(decided)
    return said[-1]


async def test_a_claim_refused_by_a_deadlock_is_written_at_the_next_try(
    db: "asyncpg.Connection[asyncpg.Record]",
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db)
    worker = await open_worker()
    request = Phone.with_pass(signer, made).claim()
    await worker.gate.release(made.release_id)
    await db.execute(_DEADLOCK_ONCE)
    try:
        said = await worker.ask(request)
    finally:
        await db.execute("DROP TRIGGER deadlock_once ON booking; DROP TABLE deadlocked; DROP SEQUENCE deadlocks")
    assert (said.status, said.word) == (201, "confirmed")
    await assert_agrees(db, redis, made)


# A sequence is not rolled back: the first attempt fails, the second goes through.
_DEADLOCK_ONCE = """
CREATE SEQUENCE deadlocks;
CREATE TABLE deadlocked ();
CREATE OR REPLACE FUNCTION deadlock_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('deadlocks') = 1 THEN
        RAISE EXCEPTION 'deadlock' USING ERRCODE = 'deadlock_detected';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER deadlock_once BEFORE INSERT ON booking FOR EACH ROW EXECUTE FUNCTION deadlock_once();
"""


async def test_a_worker_that_closes_writes_what_it_has_admitted(
    db: "asyncpg.Connection[asyncpg.Record]",
    database_url: str,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db)
    closing, other = await open_worker(), await open_worker()
    request = Phone.with_pass(signer, made).claim(claim_id=(asked_id := new_id()))
    await closing.gate.release(made.release_id)
    async with _release_locked(database_url, made):
        asking = asyncio.create_task(closing.ask(request))
        await _until_gates_wait(db)
        ending = asyncio.create_task(closing.gate.close())
    await ending
    said = await asking
    assert (said.status, said.word) == (201, "confirmed")
    again = await other.ask(request)
    assert again.body == said.body
    # Its confirmation went with it; the sweep finds the claim in PostgreSQL and confirms it.
    await command(redis, "ZADD", f"{made.at_epoch(1).keys.prefix}pending", "XX", 0, asked_id.bytes)
    await other.gate.sweep(made.release_id)
    await assert_agrees(db, redis, made)


async def test_a_frozen_postgresql_holds_up_nobody_once_it_is_back(
    db: "asyncpg.Connection[asyncpg.Record]",
    database_url: str,
    tmp_path: Path,
    open_worker: OpenWorker,
    signer: PassSigner,
) -> None:
    made = await make_release(db, capacities=(3,))
    address = urlsplit(database_url)
    query = parse_qs(address.query)
    socket_name = f".s.PGSQL.{query['port'][0]}"
    relayed_url = urlunsplit(address._replace(query=urlencode({"host": str(tmp_path), "port": query["port"][0]})))
    async with relaying(tmp_path / socket_name, Path(query["host"][0]) / socket_name) as relay:
        worker = await open_worker(database_url=SecretStr(relayed_url), commit_timeout_ms=300, commit_wait_ms=200)
        assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
        # Its connections stay open and say nothing more.
        relay.answers.swallows = True
        request = Phone.with_pass(signer, made).claim()
        # Long enough for the commit to run into its time-out while nothing is heard.
        for _ in range(4):
            assert (await worker.ask(request)).word == "pending"
        relay.answers.swallows = False

        async def confirmed() -> bool:
            return (await worker.ask(request)).word == "confirmed"

        await until(confirmed)
        assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
        await worker.gate.close()
