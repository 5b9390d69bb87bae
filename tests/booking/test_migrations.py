"""Migrations find tables in which there is something already, and leave everything in them."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.core.embedded import Engines
from tests.conftest import dsn_of, migrate

BEFORE_CAPACITIES = "commit_v2"
_RELEASE = """
INSERT INTO release (id, title, state, opens_at, closes_at, person_limit, account_limit, rules_version)
VALUES ($1, 'old', 'published', now(), now() + interval '1 day', 3, 6, 'r1')
"""
_POOL = """
INSERT INTO pool (id, release_id, ordinal, kind, title, during)
VALUES ($1, $2, $3, 'session', 'old', tstzrange(now(), now() + interval '1 hour'))
"""
_PLACES = "INSERT INTO place (pool_id, place_no) SELECT $1, n FROM generate_series(1, $2::integer) AS n"


@pytest.fixture
def dsn(engines: Engines) -> Generator[str]:
    """Give a database at the migration before pools had capacities."""
    name = "test_migrations"
    asyncio.run(_execute(engines.database_dsn, f"CREATE DATABASE {name}"))
    try:
        migrate(dsn_of(engines, name), to=BEFORE_CAPACITIES)
        yield dsn_of(engines, name)
    finally:
        asyncio.run(_execute(engines.database_dsn, f"DROP DATABASE {name}"))


@asynccontextmanager
async def _connected(dsn: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def _execute(dsn: str, statement: str) -> None:
    async with _connected(dsn) as connection:
        await connection.execute(statement)


async def _fill(dsn: str, capacities: Mapping[UUID, int]) -> None:
    release_id = uuid4()
    async with _connected(dsn) as connection:
        await connection.execute(_RELEASE, release_id)
        for ordinal, (pool_id, capacity) in enumerate(capacities.items()):
            await connection.execute(_POOL, pool_id, release_id, ordinal)
            await connection.execute(_PLACES, pool_id, capacity)


async def _capacities(dsn: str) -> dict[UUID, int]:
    async with _connected(dsn) as connection:
        return {row["id"]: row["capacity"] for row in await connection.fetch("SELECT id, capacity FROM pool")}


def test_the_places_of_pools_that_are_there_are_counted_once(dsn: str) -> None:
    there = {uuid4(): 3, uuid4(): 0, uuid4(): 17}
    asyncio.run(_fill(dsn, there))
    migrate(dsn)
    assert asyncio.run(_capacities(dsn)) == there
    # Down and up again, with pools that came meanwhile.
    migrate(dsn, to=BEFORE_CAPACITIES, down=True)
    more = {uuid4(): 2}
    asyncio.run(_fill(dsn, more))
    migrate(dsn)
    assert asyncio.run(_capacities(dsn)) == {**there, **more}
