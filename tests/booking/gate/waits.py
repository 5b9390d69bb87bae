"""Waiting for an event that only a server can see, without guessing how long it takes."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg

# Far longer than anything that is awaited here takes; a test that reaches it has failed.
PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.005


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - what is awaited happens in another process
            await asyncio.sleep(_LOOK_SECONDS)


async def until_blocked(
    db: "asyncpg.Connection[asyncpg.Record]", connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Return once this connection waits for a lock that another one holds."""
    pid = connection.get_server_pid()

    async def blocked() -> bool:
        return bool(await db.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid))

    await until(blocked)
