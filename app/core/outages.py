"""Tells from an error which engine failed, and whether it could not be reached at all.

The drivers say the same trouble in several ways; whoever reports one to an operator wants the engine's name and the
variable that says where it is.
"""

from enum import StrEnum
from typing import Final

import asyncpg
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.core.logs import trace_of
from app.core.settings import ENVIRONMENT_PREFIX


class Engine(StrEnum):
    """A server that the service stands on."""

    POSTGRESQL = "PostgreSQL"
    REDIS = "Redis"

    @property
    def variable(self) -> str:
        """Return the variable that says where it is."""
        return ENVIRONMENT_PREFIX + ("REDIS_URL" if self is Engine.REDIS else "DATABASE_URL")


# What the drivers raise when a server is not there, or not in a state to answer.
ENGINE_ERRORS: Final = (
    OSError,
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # What asyncpg makes of a server's last words that come between two of its states.
    asyncpg.InternalClientError,
    RedisError,
)

_UNREACHABLE: Final = (
    # Refused, reset, timed out, no such socket, no such host.
    OSError,
    # A wrong password and a server that still loads are among them: redis-py meets both while it connects.
    RedisConnectionError,
    RedisTimeoutError,
    asyncpg.PostgresConnectionError,
    # PostgreSQL answers, and lets nobody in: it starts, it stops, it is full, the password or the name is wrong.
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.TooManyConnectionsError,
    PoolTimeoutError,
)


def engine_of(error: BaseException) -> Engine:
    """Return the engine whose driver raised one of `ENGINE_ERRORS`.

    Neither redis-py nor the gate's own links let a bare `OSError` out.
    """
    return Engine.REDIS if isinstance(error, RedisError) else Engine.POSTGRESQL


def is_unreachable(error: BaseException) -> bool:
    """Tell whether the connection is the trouble, so that the place in our code says nothing about it."""
    if isinstance(error, DBAPIError):
        driver: BaseException | None = error.orig and error.orig.__cause__
        return error.connection_invalidated or isinstance(driver, _UNREACHABLE)
    return isinstance(error, _UNREACHABLE)


def facts_of(error: BaseException) -> dict[str, object]:
    """Return an error for the log: its kinds, and the variable of the engine that is away or the place in our code."""
    facts = trace_of(error)
    if is_unreachable(error):
        # Where we were when the line broke says nothing; which line it is says all.
        return {"variable": engine_of(error).variable, "error": facts["error"]}
    return facts
