"""Connections to PostgreSQL for the gate, with time-outs that hold even when the server says nothing more."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

# After these nothing is known of the connection: it may be waiting for an answer that never comes.
_IN_DOUBT = (TimeoutError, OSError, asyncio.CancelledError, asyncpg.InterfaceError)


@asynccontextmanager
async def borrowed(
    database: asyncpg.Pool, *, timeout_seconds: float
) -> AsyncGenerator["asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"]:
    """Lend a connection for at most so long, waiting for it included twice at the most.

    A connection that is in doubt is cut: handing it back would wait for the server to confirm a cancellation, and a
    frozen server confirms nothing. Raises `TimeoutError`, and the driver's errors.
    """
    connection = await database.acquire(timeout=timeout_seconds)
    try:
        async with asyncio.timeout(timeout_seconds):
            yield connection
    except _IN_DOUBT:
        connection.terminate()
        raise
    finally:
        await database.release(connection)
