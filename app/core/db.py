"""PostgreSQL for everything but the gate: the engine, and one transaction around a piece of work.

How a request gets its transaction stands in `app.core.web.transactions`.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar, cast

import asyncpg
import structlog
from asyncpg import DeadlockDetectedError
from sqlalchemy import MetaData
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from app.core.settings import Settings

log = structlog.get_logger(__name__)

# Every constraint has a name, so that an error can be told by it and a migration can drop it.
NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

_PORT: Final = re.compile(r":\d+$")
_USUAL_PORT: Final = 5_432
# Beyond a statement's own time-out, so that the server's word about it comes first.
_MORE_SECONDS: Final = 1.0
# How long a connection that is closed may wait for its server's goodbye.
_LEAVE_SECONDS_MAX: Final = 0.25

_T = TypeVar("_T")
AfterCommit = Callable[[], Awaitable[None]]
_AFTER_COMMIT_KEY: Final = "after_commit"


class Base(DeclarativeBase):
    """The parent of every table."""

    metadata = MetaData(naming_convention=NAMING)


def sqlalchemy_url(dsn: str) -> str:
    """Return a libpq-style address as SQLAlchemy wants it, with the asyncpg driver.

    Several hosts, of which one is the primary, stand before the database's name in libpq's form, and in the query in
    SQLAlchemy's.
    """
    _, _, rest = dsn.partition("://")
    authority, _, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    if "," not in hosts:
        return f"postgresql+asyncpg://{rest}"
    named = [host if _PORT.search(host) else f"{host}:{_USUAL_PORT}" for host in hosts.split(",")]
    query = "&".join(f"host={host}" for host in named)
    return f"postgresql+asyncpg://{user}{at}/{path}{'&' if '?' in path else '?'}{query}"


class _Impatient(asyncpg.Connection):
    """A connection that takes leave for a moment only: of a server that says nothing it would wait two seconds."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's own
        await super().close(timeout=min(timeout or _LEAVE_SECONDS_MAX, _LEAVE_SECONDS_MAX))


def create_engine(settings: Settings) -> AsyncEngine:
    """Return the engine of one process. `synchronous_commit` is on, whatever the server's default says.

    A server that is silent (frozen, or behind a line that swallows everything) ends nothing by itself, so that each
    wait has a bound here as well, a little longer than the server's own. What waited gets `TimeoutError`, and its
    connection is thrown away.
    """
    return create_async_engine(
        sqlalchemy_url(settings.database_url.get_secret_value()),
        pool_size=settings.database_pool_size,
        max_overflow=0,
        # A statement's values may be a child's facts; an error that quotes them would carry them into a log.
        hide_parameters=True,
        pool_timeout=settings.database_lock_timeout_ms / 1000,
        # No ping before each use: it would cost every request three round trips. A connection that broke meanwhile
        # costs one request a 503, and the pool throws away all that are older than the break.
        pool_pre_ping=False,
        connect_args={
            "connection_class": _Impatient,
            "timeout": settings.database_lock_timeout_ms / 1_000,
            "command_timeout": settings.database_statement_timeout_ms / 1_000 + _MORE_SECONDS,
            "server_settings": {
                "application_name": "clocktower-api",
                "synchronous_commit": "on",
                "statement_timeout": str(settings.database_statement_timeout_ms),
                "lock_timeout": str(settings.database_lock_timeout_ms),
                "idle_in_transaction_session_timeout": str(settings.database_statement_timeout_ms),
                "jit": "off",
            },
        },
    )


def after_commit(db: AsyncSession, action: AfterCommit) -> None:
    """Run `action` once the transaction is committed, and never when it is not.

    What must happen even if this process dies in between has to be found again from the database; an action
    here only makes it happen sooner.
    """
    cast("list[AfterCommit]", db.info.setdefault(_AFTER_COMMIT_KEY, [])).append(action)


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncGenerator[AsyncSession]:
    """Open a session in one transaction; commit at the end, roll back on any error."""
    async with AsyncSession(engine, expire_on_commit=False, autoflush=False) as db:
        async with db.begin():
            yield db
        actions = cast("list[AfterCommit]", db.info.pop(_AFTER_COMMIT_KEY, []))
    for action in actions:
        try:
            await action()
        except Exception:
            # The write is committed, and its answer is yes. What the action would have done is found again later.
            log.exception("after_commit_failed")


async def repeated_on_deadlock(
    engine: AsyncEngine, work: Callable[[AsyncSession], Awaitable[_T]], *, retry_limit: int
) -> _T:
    """Do `work` in a transaction of its own, and again from its beginning where PostgreSQL undid it for a deadlock.

    For work whose locks nobody can bring into one order. Raises what the last try raises.
    """
    for _ in range(retry_limit):
        try:
            async with transaction(engine) as db:
                return await work(db)
        except DBAPIError as error:
            if not isinstance(error.driver_exception, DeadlockDetectedError):
                raise
            log.info("transaction_repeated", because="deadlock")
    async with transaction(engine) as db:
        return await work(db)
