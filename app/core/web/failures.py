"""Turns whatever was raised into a problem that may be told, and says which of it must be looked into.

What comes from a dependency that is down becomes 503: the caller did nothing wrong and may try again. What only a
defect of ours can raise becomes 500. Neither tells the caller what was inside: an exception's text may hold values.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, cast

import asyncpg
from fastapi.exceptions import RequestValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from app.core.problems import (
    BodyTooLarge,
    Conflict,
    InternalError,
    MalformedJson,
    MethodNotAllowed,
    NotAuthenticated,
    NotFound,
    Problem,
    Unavailable,
    UnsupportedMediaType,
    ValidationFailed,
    jittered_ms,
)
from app.core.web.validation import field_errors

# About how long a phone stays away from a server whose database is: long enough to be felt, short enough to be waited.
UNAVAILABLE_RETRY_MS: Final = 2_000

# SQLSTATE classes and codes (PostgreSQL manual, appendix A) that pass by themselves.
_PASSING_CLASSES: Final = frozenset(
    {
        "08",  # connection exception
        "25",  # invalid transaction state, as when a primary has become a replica
        "53",  # insufficient resources
        "57",  # operator intervention: shutting down, starting up, statement time-out
        "58",  # system error
    }
)
_PASSING_CODES: Final = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock
        "55P03",  # lock not available in time
    }
)
# A value that PostgreSQL cannot hold: NUL in a text, a number out of range. A schema should have refused it.
_DATA_CLASS: Final = "22"
# A constraint that its feature has not mapped.
_INTEGRITY_CLASS: Final = "23"

_BY_STATUS: Final[Mapping[int, type[Problem]]] = {
    HTTPStatus.BAD_REQUEST: MalformedJson,
    HTTPStatus.UNAUTHORIZED: NotAuthenticated,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.METHOD_NOT_ALLOWED: MethodNotAllowed,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: BodyTooLarge,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: UnsupportedMediaType,
}


def unavailable() -> Unavailable:
    """Return the problem for a dependency that does not answer, with a wait that spreads the phones out."""
    return Unavailable(retry_after_ms=jittered_ms(UNAVAILABLE_RETRY_MS))


def problem_for(error: Exception) -> Problem:
    """Return the problem that tells this error; every error has one."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return ValidationFailed(errors=field_errors(error.errors()))
        case HTTPException():
            return _BY_STATUS.get(error.status_code, InternalError)()
        case DBAPIError():
            return unavailable() if error.connection_invalidated else _for_driver(error)
        case asyncpg.PostgresError() | asyncpg.InterfaceError():
            return _for_driver(error)
        # OSError: a socket that refuses or is not there. Requests touch no files, so there is no other kind.
        case PoolTimeoutError() | RedisConnectionError() | RedisTimeoutError() | OSError():
            return unavailable()
        # A server's last words at a moment when asyncpg expects none; SQLAlchemy lets it through as it is.
        case asyncpg.InternalClientError():
            return unavailable()
        case _:
            return InternalError()


def is_ours_to_mend(error: Exception) -> bool:
    """Tell whether an error shows a defect or an outage, and so belongs in the log with its trace."""
    return not isinstance(error, Problem | RequestValidationError | HTTPException)


def sqlstate_of(error: BaseException) -> str | None:
    """Return PostgreSQL's five-character code, from the driver's error or SQLAlchemy's around it; None without one."""
    return cast("str | None", getattr(driver_error(error), "sqlstate", None))


def constraint_of(error: BaseException) -> str | None:
    """Return the name of the constraint that a statement broke, as PostgreSQL's own error field gives it."""
    return cast("str | None", getattr(driver_error(error), "constraint_name", None))


def driver_error(error: BaseException) -> BaseException:
    """Return asyncpg's error behind SQLAlchemy's, or the error itself where nothing is behind it."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.driver_exception
    return error


def _for_driver(error: Exception) -> Problem:
    match driver_error(error):
        case asyncpg.PostgresError(sqlstate=str() as sqlstate):
            return _for_sqlstate(sqlstate)
        # asyncpg could not write the value at all: too large for the column's type, or not UTF-8.
        case asyncpg.InterfaceError() as inner if isinstance(inner, ValueError):
            return ValidationFailed()
        case asyncpg.InterfaceError() | OSError():
            return unavailable()
        case _:
            return InternalError()


def _for_sqlstate(sqlstate: str) -> Problem:
    if sqlstate[:2] in _PASSING_CLASSES or sqlstate in _PASSING_CODES:
        return unavailable()
    if sqlstate[:2] == _DATA_CLASS:
        return ValidationFailed()
    if sqlstate[:2] == _INTEGRITY_CLASS:
        return Conflict()
    return InternalError()
