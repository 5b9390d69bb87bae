"""What is there already: pretix, the ticket shop, asked over its order API. It gives places away for nothing, too."""

import asyncio
import os
import subprocess
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Final

import asyncpg
import msgspec
from redis.asyncio import Redis

from loadtest.bench.peers import CannotRunPeerError, Command, Surroundings
from loadtest.bench.peers.pretix.installing import install, postgres_program, run
from loadtest.bench.peers.pretix.surrounding import (
    CACHE_DB,
    PYTHON,
    TABLES,
    TASKS_DB,
    database_of_its_own,
    name_in,
    pretix_environment,
)

_THREADS: Final = 8
_KEEP_ALIVE_SECONDS: Final = 75
_ORDERS: Final = "/api/v1/organizers/town/events/courses/orders/"
# One position is one person's place.
_WINNERS: Final = """
SELECT count(*) FROM pretixbase_orderposition AS place JOIN pretixbase_order AS given ON given.id = place.order_id
WHERE NOT place.canceled AND given.status IN ('n', 'p')
"""
# Not DROP DATABASE … WITH (FORCE), which fails where an autovacuum worker happens to be there.
_HANG_UP: Final = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1 AND usename = current_user
"""
_SHOP: Final = "shop.json"


class _Claim(msgspec.Struct):
    people: list[str]
    choices: list[str]


class _Shop(msgspec.Struct):
    token: str
    items: dict[str, int]


class _Pretix:
    name = "pretix"
    what = (
        "pretix 2026.8.0, order API, gunicorn with one worker of 8 threads: free orders of the claim's first choice, "
        "with an idempotency key; tasks are queued and nobody works on them"
    )

    def install(self, progress: Callable[[str], None]) -> None:
        """Make its environment and its tables, once. Raises `CannotRunPeerError`."""
        install(progress)

    async def prepare(self, surroundings: Surroundings) -> None:
        """Make its database anew, with a shop in it. Raises `CannotRunPeerError`."""
        for database in (CACHE_DB, TASKS_DB):
            async with Redis(unix_socket_path=str(surroundings.redis_socket), db=database) as redis:
                await redis.flushdb()  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
        own_url = database_of_its_own(surroundings.database_url)
        name = name_in(own_url)
        async with _connected(surroundings.database_url) as connection:
            await connection.execute(_HANG_UP, name)
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}"')
            await connection.execute(f'CREATE DATABASE "{name}"')
        await asyncio.to_thread(
            run,
            *(postgres_program("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction"),
            *("--output", os.devnull, "--file", str(TABLES), "--dbname", own_url),
        )
        async with _connected(own_url) as connection:
            await connection.execute("ANALYZE")
        shop = await _make_shop(surroundings)
        await asyncio.to_thread(surroundings.state_dir.joinpath(_SHOP).write_bytes, shop)

    def command(self, surroundings: Surroundings) -> Command:
        """Return how to start it."""
        return Command(
            (
                *(str(PYTHON.with_name("gunicorn")), "loaded:application"),
                *("--pythonpath", str(resources.files(__name__))),
                *("--bind", f"127.0.0.1:{surroundings.port}", "--workers", "1", "--threads", str(_THREADS)),
                # Loaded before it listens: whoever finds the port open is answered.
                *("--preload", "--keep-alive", str(_KEEP_ALIVE_SECONDS), "--log-level", "warning"),
                # What is still asked when the bench is over, nobody waits for.
                *("--graceful-timeout", "1"),
            ),
            _environment(surroundings),
            surroundings.state_dir,
        )

    def requests(self, claims: Sequence[bytes], surroundings: Surroundings) -> Sequence[bytes]:
        """Return orders: for each claim its people, in the pool that it would like best."""
        shop = msgspec.json.decode(surroundings.state_dir.joinpath(_SHOP).read_bytes(), type=_Shop)
        return [_order(claim, shop, surroundings.port) for claim in claims]

    async def winners(self, surroundings: Surroundings) -> int:
        """Count what was ordered and not cancelled."""
        async with _connected(database_of_its_own(surroundings.database_url)) as connection:
            return int(await connection.fetchval(_WINNERS))


def _order(claim: bytes, shop: _Shop, port: int) -> bytes:
    head, _, body = claim.partition(b"\r\n\r\n")
    claim_id = head.split(b" ", 2)[1].rpartition(b"/")[2].decode()
    asked = msgspec.json.decode(body, type=_Claim)
    item = shop.items[asked.choices[0]]
    order = msgspec.json.encode(
        {
            "locale": "en",
            "payment_provider": "free",
            "positions": [{"item": item, "price": "0.00", "attendee_name": person} for person in asked.people],
        }
    )
    lines = (
        f"POST {_ORDERS} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Authorization: Token {shop.token}",
        f"X-Idempotency-Key: {claim_id}",
        "Content-Type: application/json",
        f"Content-Length: {len(order)}",
    )
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + order


def _environment(surroundings: Surroundings) -> dict[str, str]:
    return pretix_environment(
        database_of_its_own(surroundings.database_url),
        surroundings.redis_socket,
        surroundings.state_dir,
        surroundings.port,
    )


async def _make_shop(surroundings: Surroundings) -> bytes:
    """Have pretix's own Python make the shop, and return how to order there."""
    process = await asyncio.create_subprocess_exec(
        PYTHON,
        str(resources.files(__name__).joinpath("make_shop.py")),
        cwd=surroundings.state_dir,
        env={**os.environ, **_environment(surroundings)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wanted = {"pools": surroundings.pool_ids, "places": surroundings.places}
    said, complained = await process.communicate(msgspec.json.encode(wanted))
    if process.returncode != 0:
        raise CannotRunPeerError(f"pretix could not make a shop: {complained.decode(errors='replace').strip()[-600:]}")
    return said


@asynccontextmanager
async def _connected(database_url: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


PRETIX = _Pretix()
