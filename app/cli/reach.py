"""Whether the servers can be used: asks them, and says in a sentence which cannot, and where it was looked for."""

import asyncio
from typing import Final
from urllib.parse import parse_qs, urlsplit

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.cli.refusal import Refusal
from app.core.outages import ENGINE_ERRORS, Engine, engine_of
from app.core.redis import connect_redis, redis_address
from app.core.redis_address import Kind
from app.core.settings import Settings

_ANSWER_SECONDS_MAX: Final = 10.0


def away(settings: Settings, error: BaseException) -> str:
    """Say which engine did not do its part, where it was looked for, and why; never the password."""
    engine = engine_of(error)
    where = _where_redis_is(settings) if engine is Engine.REDIS else _where(settings.database_url.get_secret_value())
    reason = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return f"{engine} at {where} cannot be used ({reason}); check that it runs, and {engine.variable} where it is set."


def _where_redis_is(settings: Settings) -> str:
    address = redis_address(settings)
    return _where(settings.redis_url.get_secret_value()) if address.kind is Kind.ONE else address.where


def _where(url: str) -> str:
    address = urlsplit(url)
    # Several hosts with their ports are not taken apart by `urlsplit`.
    host = address.netloc.rpartition("@")[2]
    if host:
        return host + address.path
    # PostgreSQL's address names the socket's directory beside the database, Redis's the socket itself.
    directory = parse_qs(address.query).get("host", [""])[-1]
    return f"the socket in {directory} (database {address.path[1:]})" if directory else f"the socket {address.path}"


async def require_redis(settings: Settings) -> None:
    """Raise `Refusal` when Redis cannot be used."""
    try:
        await ask_redis(settings)
    except ENGINE_ERRORS as error:
        raise Refusal(away(settings, error)) from error


async def ask_postgres(engine: AsyncEngine) -> None:
    """Raise the driver's error, or `TimeoutError`, when PostgreSQL does not answer."""
    # An address that swallows what is sent to it is no answer either. Redis has such a bound of its own.
    async with asyncio.timeout(_ANSWER_SECONDS_MAX), engine.connect() as connection:
        await connection.execute(text("SELECT 1"))


async def ask_redis(settings: Settings) -> None:
    """Raise the driver's error when Redis does not answer."""
    client = connect_redis(settings, connections=1)
    try:
        await client.ping()  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues] - redis-py leaves **kwargs untyped
    finally:
        await client.aclose()
