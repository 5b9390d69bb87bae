"""PostgreSQL is killed, frozen, restarted, short of connections or disk, or held up by somebody's locks."""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import psutil

from app.core.embedded.postgres import SUPERUSER
from loadtest.threads import in_thread
from tests.chaos.engines import kill
from tests.chaos.faults.strikes import HELD_SECONDS, Strike, frozen
from tests.chaos.stand import PAUSE_SECONDS, Stand

LOCK_SECONDS: Final = 10.0
# The gate connects when it has something to write, and the round has begun by then.
_CONNECTED_SECONDS_MAX: Final = 10.0
# Of the gate's sessions, the one that was used last.
_GATE_BACKEND: Final = """
SELECT pid FROM pg_stat_activity WHERE application_name = 'clocktower-gate' ORDER BY state_change DESC LIMIT 1
"""


async def kill_postgres(stand: Stand, rng: random.Random, strike: Strike) -> None:
    strike.begins()
    stand.plant.kill_postgres()
    await asyncio.sleep(rng.uniform(0.5, 2.0))
    await in_thread(stand.plant.restart_postgres)
    strike.ends()


async def restart_postgres(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    strike.begins()
    postmaster, *_ = stand.plant.postgres_family()
    # An immediate shutdown, as pg_ctl calls it.
    postmaster.send_signal(signal.SIGQUIT)
    await in_thread(stand.plant.restart_postgres)
    strike.ends()


async def freeze_postgres(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    await frozen(stand.plant.postgres_family(), PAUSE_SECONDS, strike)


async def _gate_backend(stand: Stand) -> psutil.Process:
    """Return it, once there is one."""
    async with stand.database(user=SUPERUSER) as database, asyncio.timeout(_CONNECTED_SECONDS_MAX):
        while True:
            pid = await database.fetchval(_GATE_BACKEND)
            # One that has just ended is no more use than none.
            with contextlib.suppress(psutil.NoSuchProcess):
                if pid is not None:
                    return psutil.Process(pid)
            await asyncio.sleep(0.05)


async def kill_backend(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    """A backend that dies takes all others with it: PostgreSQL trusts nobody's memory any more, and recovers."""
    backend = await _gate_backend(stand)
    strike.begins()
    kill(backend)


async def freeze_backend(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    await frozen([await _gate_backend(stand)], PAUSE_SECONDS, strike)


async def terminate_backends(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    async with stand.database(user=SUPERUSER) as database:
        strike.begins()
        await database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'clocktower-gate'"
        )


async def lock_a_row(stand: Stand, rng: random.Random, strike: Strike) -> None:
    """Keep a place locked, as somebody does who edits it by hand and goes to lunch."""
    async with stand.database() as database, database.transaction():
        strike.begins()
        await database.execute(
            "SELECT FROM place WHERE pool_id = $1 AND place_no > $2 FOR UPDATE",
            stand.made.pools[-1],
            rng.randint(0, 50),
        )
        await asyncio.sleep(LOCK_SECONDS)
        strike.ends()


async def exhaust_connections(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    """Take every connection that there is, and cut those that the service has."""
    async with _greedy(stand) as take:
        strike.begins()
        await take()
        stand.to_postgres.cut()
        # Whatever came free by that, and was not there before.
        strike.missed = await take() == 0
        await asyncio.sleep(HELD_SECONDS)
    strike.ends()


@asynccontextmanager
async def _greedy(stand: Stand) -> AsyncGenerator[Callable[[], Awaitable[int]]]:
    """Yield what takes every connection that is to be had, and tells how many those were; give them back at the end."""
    taken: list[asyncpg.Connection[asyncpg.Record]] = []

    async def take() -> int:
        before = len(taken)
        while True:
            try:
                taken.append(await asyncpg.connect(stand.plant.database_dsn))
            except asyncpg.PostgresError:
                return len(taken) - before

    try:
        yield take
    finally:
        for connection in taken:
            connection.terminate()


async def fill_the_disk(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    disk = stand.plant.small_disk
    assert disk is not None
    strike.begins()
    await asyncio.to_thread(disk.fill)
    async with stand.database() as database:
        # What is in the log's open segments needs no room; a new one does.
        try:
            await database.execute("SELECT pg_logical_emit_message(false, 'chaos', repeat('x', 40000000))")
        except (asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
            pass
        else:
            strike.missed = True
    await asyncio.sleep(HELD_SECONDS)
    disk.clear()
    await in_thread(lambda: _restart_if_dead(stand))
    strike.ends()


def _restart_if_dead(stand: Stand) -> None:
    if stand.plant.postgres.has_died():
        stand.plant.restart_postgres()
    else:
        stand.plant.postgres.await_ready()
