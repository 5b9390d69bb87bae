"""PostgreSQL's locks on releases, held for as long as a test wants: commits and rebuilds have to wait."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg

from tests.booking.gate.builders import MadeRelease
from tests.booking.gate.waits import until

_LOCK = "SELECT pg_advisory_lock(hashtextextended($1 || id::text, 0)) FROM unnest($2::uuid[]) AS id"
_WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'clocktower-gate' AND wait_event_type = 'Lock'
"""


@asynccontextmanager
async def _holding(database_url: str, release_ids: Sequence[UUID], *kinds: str) -> AsyncGenerator[None]:
    connection = await asyncpg.connect(database_url)
    try:
        for kind in kinds:
            await connection.execute(_LOCK, f"{kind}:", list(release_ids))
        yield
    finally:
        await connection.close()


@asynccontextmanager
async def no_commit_of(database_url: str, made: MadeRelease) -> AsyncGenerator[None]:
    """Hold the lock that a rebuild holds: meanwhile no commit of this release gets through."""
    async with _holding(database_url, [made.release_id], "release"):
        yield


@asynccontextmanager
async def no_rebuild_of(database_url: str, release_ids: Sequence[UUID]) -> AsyncGenerator[None]:
    """Hold every lock that a rebuild of these releases takes."""
    async with _holding(database_url, release_ids, "rebuild", "release"):
        yield


async def until_gates_wait(db: "asyncpg.Connection[asyncpg.Record]", count: int = 1) -> None:
    """Return once so many commits or rebuilds wait."""

    async def wait() -> bool:
        return bool(await db.fetchval(_WAITING) >= count)

    await until(wait)
