"""A connection that is in doubt is cut: nobody waits for a server that says nothing."""

import asyncio
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import asyncpg
import pytest

from app.booking.gate.database import borrowed
from tests.booking.gate.relay import relaying
from tests.booking.gate.waits import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


async def test_a_connection_in_doubt_is_cut_without_a_word_from_a_frozen_server(
    database_url: str, tmp_path: Path
) -> None:
    address = urlsplit(database_url)
    query = parse_qs(address.query)
    socket_name = f".s.PGSQL.{query['port'][0]}"
    relayed_url = urlunsplit(address._replace(query=urlencode({"host": str(tmp_path), "port": query["port"][0]})))
    async with (
        relaying(tmp_path / socket_name, Path(query["host"][0]) / socket_name) as relay,
        asyncpg.create_pool(relayed_url, min_size=0, max_size=1) as database,
    ):

        async def ask() -> int | None:
            # Longer than the test has patience: whoever waits for the server here waits too long.
            async with borrowed(database, timeout_seconds=2 * PATIENCE_SECONDS) as connection:
                return await connection.fetchval("SELECT 1")

        assert await ask() == 1
        relay.swallows = True
        asking = asyncio.create_task(ask())
        await relay.swallowed.wait()
        asking.cancel()
        await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
        assert asking.cancelled()
        # The one connection that there may be is free for the next.
        relay.swallows = False
        assert await ask() == 1
