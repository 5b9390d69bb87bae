"""Winners that wait: PostgreSQL's lock on a release, held for as long as a test wants."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from tests.booking.gate.builders import MadeRelease
from tests.booking.gate.waits import until

_LOCK = "SELECT pg_advisory_lock(hashtextextended('release:' || $1::uuid::text, 0))"
_COMMITS_THAT_WAIT = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'clocktower-gate' AND wait_event_type = 'Lock'
"""


@asynccontextmanager
async def no_commit_of(database_url: str, made: MadeRelease) -> AsyncGenerator[None]:
    """Hold the lock that a rebuild holds: meanwhile no commit of this release gets through."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_LOCK, made.release_id)
        yield
    finally:
        await connection.close()


async def until_commits_wait(db: "asyncpg.Connection[asyncpg.Record]", count: int = 1) -> None:
    """Return once so many commits of the gate wait."""

    async def wait() -> bool:
        return bool(await db.fetchval(_COMMITS_THAT_WAIT) >= count)

    await until(wait)
