"""A connection that is in doubt is cut: nobody waits for a server that says nothing, or for whoever lost the line."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import asyncpg
import pytest
from pydantic import SecretStr

from app.booking.gate.database import borrowed
from app.booking.gate.passes import PassSigner
from tests.booking.gate.builders import MadeRelease, Phone, Worker, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.waits import PATIENCE_SECONDS, until
from tests.relay import Relay, relaying

pytestmark = pytest.mark.anyio

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('release:' || $1::uuid::text, 0))"
_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended('release:' || $1::uuid::text, 0))"
_WAITERS = """
SELECT count(*) > 0 FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()
"""


class Line(NamedTuple):
    """A way to PostgreSQL that can fall silent."""

    database_url: str
    relay: Relay


@pytest.fixture
async def line(database_url: str, tmp_path: Path) -> AsyncGenerator[Line]:
    address = urlsplit(database_url)
    query = parse_qs(address.query)
    socket_name = f".s.PGSQL.{query['port'][0]}"
    relayed_url = urlunsplit(address._replace(query=urlencode({"host": str(tmp_path), "port": query["port"][0]})))
    async with relaying(tmp_path / socket_name, Path(query["host"][0]) / socket_name) as relay:
        yield Line(relayed_url, relay)


async def test_a_connection_in_doubt_is_cut_without_a_word_from_a_frozen_server(line: Line) -> None:
    async with asyncpg.create_pool(line.database_url, min_size=0, max_size=1) as database:

        async def ask() -> int | None:
            # Longer than the test has patience: whoever waits for the server here waits too long.
            async with borrowed(database, timeout_seconds=2 * PATIENCE_SECONDS) as connection:
                return await connection.fetchval("SELECT 1")

        assert await ask() == 1
        line.relay.answers.swallows = True
        asking = asyncio.create_task(ask())
        await line.relay.answers.swallowed.wait()
        asking.cancel()
        await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
        assert asking.cancelled()
        # The one connection that there may be is free for the next.
        line.relay.answers.swallows = False
        assert await ask() == 1


async def test_nobody_waits_for_the_rollback_on_a_silent_line(
    line: Line, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    release_id = (await make_release(db)).release_id
    async with asyncpg.create_pool(line.database_url, min_size=0, max_size=1) as database:

        async def hold_the_lock() -> None:
            async with borrowed(database, timeout_seconds=0.5) as connection, connection.transaction():
                await connection.execute(_LOCK, release_id)
                line.relay.answers.swallows = True
                await connection.execute("SELECT 1")

        holding = asyncio.create_task(hold_the_lock())
        await asyncio.wait({holding}, timeout=PATIENCE_SECONDS)
        assert isinstance(holding.exception(), TimeoutError)
        # The server noticed that the line was cut, and let go.
        await until(lambda: db.fetchval(_TRY_LOCK, release_id))


async def _lost_in_a_rebuild(
    worker: Worker, db: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease, relay: Relay
) -> "asyncio.Task[None]":
    """Start a rebuild that gets the release's lock, and never hears that it has."""
    async with db.transaction():
        await db.execute(_LOCK, made.release_id)
        rebuilding = asyncio.create_task(worker.gate.rebuild(made.release_id))

        await until(lambda: db.fetchval(_WAITERS))
        relay.answers.swallows = True
    await relay.answers.swallowed.wait()
    return rebuilding


async def test_a_line_lost_in_a_rebuild_keeps_the_others_out_for_the_time_of_one_rebuild(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, line: Line
) -> None:
    made = await make_release(db)
    lost = await open_worker(database_url=SecretStr(line.database_url), rebuild_timeout_seconds=1)
    other = await open_worker()
    rebuilding = await _lost_in_a_rebuild(lost, db, made, line.relay)
    request = Phone.with_pass(signer, made).claim()

    async def has_entered() -> bool:
        return (await other.ask(request)).word == "confirmed"

    await until(has_entered)
    await asyncio.wait({rebuilding}, timeout=PATIENCE_SECONDS)
    assert isinstance(rebuilding.exception(), TimeoutError)


async def test_a_gate_closes_although_the_line_is_silent(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, line: Line
) -> None:
    made = await make_release(db)
    lost = await open_worker(database_url=SecretStr(line.database_url))
    async with db.transaction():
        await db.execute(_LOCK, made.release_id)
        asking = asyncio.create_task(lost.ask(Phone.with_pass(signer, made).claim()))

        await until(lambda: db.fetchval(_WAITERS))
        line.relay.answers.swallows = True
    await line.relay.answers.swallowed.wait()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await lost.gate.close()
        assert (await asking).word == "gate_unreachable"


async def test_the_server_ends_the_transaction_of_whoever_vanished(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker
) -> None:
    release_id = (await make_release(db)).release_id
    worker = await open_worker(commit_timeout_ms=200, redis_timeout_ms=50)

    async def vanish() -> None:
        database = worker.gate._database
        async with borrowed(database, timeout_seconds=2 * PATIENCE_SECONDS) as connection, connection.transaction():
            await connection.execute(_LOCK, release_id)
            await until(lambda: db.fetchval(_TRY_LOCK, release_id))

    # What asyncpg makes of it depends on whether the server's last words came before our next.
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await vanish()


async def test_last_words_that_the_driver_did_not_expect_are_a_lost_connection(database_url: str) -> None:
    """As asyncpg 0.31 has it where a server ends a connection between two of the driver's states."""
    async with asyncpg.create_pool(database_url, min_size=0, max_size=1) as database:

        async def ask() -> int | None:
            async with borrowed(database, timeout_seconds=PATIENCE_SECONDS) as connection:
                return await connection.fetchval("SELECT pg_backend_pid()")

        first = await ask()
        with pytest.raises(asyncpg.InterfaceError, match="lost"):
            async with borrowed(database, timeout_seconds=PATIENCE_SECONDS):
                raise asyncpg.InternalClientError("got result for unknown protocol state")
        # Nothing is known of that connection, so nobody is lent it again.
        assert await ask() != first
