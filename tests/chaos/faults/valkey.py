"""Valkey is killed, frozen, emptied, full, or replaced by a copy that is behind."""

import asyncio
import random
from collections.abc import Awaitable
from typing import Any, Final, cast

import psutil
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from loadtest.threads import in_thread
from tests.chaos.faults.strikes import HELD_SECONDS, Strike, frozen
from tests.chaos.stand import PAUSE_SECONDS, Stand

_SYNC_SECONDS_MAX: Final = 60.0


async def _command(valkey: Redis, *words: str) -> Any:
    return await cast("Awaitable[Any]", valkey.execute_command(*words))  # pyright: ignore[reportUnknownMemberType] - untyped **options


async def kill_valkey(stand: Stand, rng: random.Random, strike: Strike) -> None:
    strike.begins()
    stand.plant.kill_valkey()
    await asyncio.sleep(rng.uniform(0.5, 2.0))
    await in_thread(stand.plant.restart_valkey)
    strike.ends()


async def empty_valkey(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    strike.begins()
    stand.plant.kill_valkey()
    await in_thread(stand.plant.restart_valkey)
    strike.ends()


async def freeze_valkey(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    pid = stand.plant.valkey.pid
    assert pid is not None
    await frozen([psutil.Process(pid)], PAUSE_SECONDS, strike)


async def flush_all(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    async with stand.valkey() as valkey:
        strike.begins()
        await _command(valkey, "FLUSHALL")


async def flush_scripts(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    async with stand.valkey() as valkey:
        strike.begins()
        await _command(valkey, "SCRIPT", "FLUSH")


async def fill_valkey(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    async with stand.valkey() as valkey:
        strike.begins()
        await _command(valkey, "CONFIG", "SET", "maxmemory", "1mb")
        try:
            await _command(valkey, "SET", "chaos", "a word more")
        except ResponseError:
            pass
        else:
            strike.missed = True
        await asyncio.sleep(HELD_SECONDS)
        await _command(valkey, "CONFIG", "SET", "maxmemory", "1gb")
        strike.ends()


async def promote_an_old_copy(stand: Stand, rng: random.Random, strike: Strike) -> None:
    """Let a copy fall behind and take over, while half of the lines still lead to the old primary, which lives on."""
    await in_thread(stand.plant.start_second_valkey)
    async with stand.valkey() as first, stand.valkey(second=True) as second:
        # By default a primary waits whether more copies come.
        await _command(first, "CONFIG", "SET", "repl-diskless-sync-delay", "0")
        port = await _open_a_port(first, rng)
        await _command(second, "REPLICAOF", "127.0.0.1", str(port))
        await _until_in_step(second)
        await _command(second, "REPLICAOF", "NO", "ONE")
        # What is decided now the copy does not know.
        await asyncio.sleep(rng.uniform(0.3, 0.8))
        strike.begins()
        stand.to_valkey.target = stand.plant.second_valkey_socket
        stand.to_valkey.cut(every=2)
        await asyncio.sleep(rng.uniform(0.5, 1.5))
        stand.to_valkey.cut()
        strike.ends()


async def _open_a_port(valkey: Redis, rng: random.Random) -> int:
    """Have Valkey listen on loopback: a copy is made over TCP only."""
    while True:
        port = rng.randint(20_000, 30_000)
        try:
            await _command(valkey, "CONFIG", "SET", "port", str(port))
        except ResponseError:
            # Somebody else's; the next.
            continue
        return port


async def _until_in_step(copy: Redis) -> None:
    async with asyncio.timeout(_SYNC_SECONDS_MAX):
        while True:
            info = cast("dict[str, object]", await copy.info("replication"))  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
            if info.get("master_link_status") == "up" and not info.get("master_sync_in_progress"):
                return
            await asyncio.sleep(0.02)
