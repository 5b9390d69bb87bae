"""Engines of one's own, as the embedded mode runs them, with a PostgreSQL that keeps count of its statements.

The tests' own PostgreSQL does not: what counts statements inside functions has to be loaded at the start. With a
Valkey that nobody else asks, nothing else is in the books.
"""

import asyncio
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from unittest.mock import patch
from urllib.parse import parse_qs, quote, unquote, urlsplit

import asyncpg

from app.core.embedded import postgres as embedded_postgres
from app.core.embedded import start_engines
from tests.conftest import migrate
from tests.work.postgres_line import PORT, SOCKET_NAME, PostgresLine, relayed

_MORE_SETTINGS: Final = (
    ("shared_preload_libraries", "pg_stat_statements"),
    # Statements inside functions, and those of foreign keys.
    ("pg_stat_statements.track", "all"),
    # It would look at the tables at moments of its own, and plans would change with what it finds.
    ("autovacuum", "off"),
)
# Of what the application's role asked: the observer is the superuser.
_INSIDE: Final = """
SELECT coalesce(sum(calls) FILTER (WHERE NOT toplevel), 0)::bigint AS inner_statements,
       coalesce(sum(wal_records) FILTER (WHERE toplevel), 0)::bigint AS wal_records
FROM pg_stat_statements WHERE userid = (SELECT oid FROM pg_roles WHERE rolname = $1)
"""


@dataclass(frozen=True, slots=True)
class CountingEngines:
    """Where the engines are. `counted_dsn` leads over the line that counts, `direct_dsn` past it.

    `observer_dsn` is the superuser's, to another database.
    """

    counted_dsn: str
    direct_dsn: str
    observer_dsn: str
    redis_url: str
    redis_socket: Path
    redis_pid: int
    line: PostgresLine


class InsideCounts(NamedTuple):
    """What PostgreSQL did for statements of the application: statements inside them, and records of its log (WAL).

    Statements inside are those of functions, and one for each row that a foreign key looks at.
    """

    inner_statements: int
    wal_records: int

    def since(self, before: "InsideCounts") -> "InsideCounts":
        """Return what came after `before`."""
        return InsideCounts(*(now - then for now, then in zip(self, before, strict=True)))


async def counts_inside(observer: "asyncpg.Connection[asyncpg.Record]") -> InsideCounts:
    """Return everything since the start."""
    row = await observer.fetchrow(_INSIDE, embedded_postgres.ROLE)
    assert row is not None
    return InsideCounts(row["inner_statements"], row["wal_records"])


@contextmanager
def counting_engines(directory: Path, *, progress: Callable[[str], None]) -> Generator[CountingEngines]:
    """Run both engines under `directory`, migrated and empty, until the end of the block."""
    settings = (*embedded_postgres.SETTINGS, *_MORE_SETTINGS)
    # For the start alone: other tests of this process start engines as they are.
    with patch.object(embedded_postgres, "SETTINGS", settings):
        engines = start_engines(directory / "data", progress=progress)
    # A directory of its own, and not below the other, since the path of a socket may have some hundred bytes only.
    with engines, tempfile.TemporaryDirectory(prefix="line-") as line_directory:
        valkey_pid = engines.valkey_pid
        assert valkey_pid is not None
        address = urlsplit(engines.database_dsn)
        (host,) = parse_qs(address.query)["host"]
        observer_dsn = f"postgresql://{embedded_postgres.SUPERUSER}@/postgres?{address.query}"
        asyncio.run(_execute(observer_dsn, "CREATE EXTENSION pg_stat_statements"))
        migrate(engines.database_dsn)
        with relayed(Path(line_directory), Path(host) / SOCKET_NAME) as line:
            yield CountingEngines(
                address._replace(query=f"host={quote(line_directory)}&port={PORT}").geturl(),
                engines.database_dsn,
                observer_dsn,
                engines.redis_url,
                Path(unquote(urlsplit(engines.redis_url).path)),
                valkey_pid,
                line,
            )


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
