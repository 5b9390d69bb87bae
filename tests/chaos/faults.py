"""The catalogue of what can break, and how each is broken and mended.

A fault is struck while the crowd is at it. It tells when it struck and when it was over: what the release may cost
beyond that is measured from there. Whatever it leaves broken, the stand's own end cleans up.
"""

import asyncio
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import asyncpg
import msgspec
import psutil
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.core.embedded.postgres import SUPERUSER
from loadtest.bench.town import BenchRelease, claim_requests, poll_requests
from loadtest.bench.wrk import replay_file
from tests.chaos.engines import freeze, kill, thaw
from tests.chaos.stand import PAUSE_SECONDS, Stand
from tests.chaos.storm import FLOOD_PHONES, RETRYING_PHONES, SILENT_PHONES, SLOW_PHONES, Heard
from tests.relay import Direction, Relay
from tests.threads import in_thread

_LOCK_SECONDS: Final = 10.0
_DELAY_SECONDS: Final = 0.4
_HELD_SECONDS: Final = 2.0
_STORM_SECONDS: Final = 4.0
_STRANGERS: Final = 10_000
_QUEUE_LIMIT: Final = 200
# Of the gate's sessions, the one that was used last.
_GATE_BACKEND: Final = """
SELECT pid FROM pg_stat_activity WHERE application_name = 'clocktower-gate' ORDER BY state_change DESC LIMIT 1
"""
# A crash point that nobody passes within this time was not struck. Orphans are swept after their deadline.
_CRASH_SECONDS_MAX: Final = PAUSE_SECONDS + 2.0
_LOOK_EVERY_SECONDS: Final = 0.005
_SYNC_SECONDS_MAX: Final = 5.0


@dataclass(slots=True)
class Strike:
    """When a fault began and when it was over, by `time.perf_counter`. `missed`: it found nothing to strike.

    `storm` is what a storm heard.
    """

    began_at: float = 0.0
    ended_at: float = 0.0
    missed: bool = False
    storm: Heard | None = None

    def begins(self) -> None:
        """Note that it breaks now."""
        self.began_at = self.ended_at = time.perf_counter()

    def ends(self) -> None:
        """Note that it is mended now."""
        self.ended_at = time.perf_counter()


Play = Callable[[Stand, random.Random, Strike], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can break. `seam` is opened in the service's processes for the whole round.

    `settings` are the service's in this round, besides those of every round.
    """

    name: str
    what: str
    play: Play
    seam: str = ""
    on_a_small_disk: bool = False
    settings: Mapping[str, str] = field(default_factory=dict[str, str])


# Processes of the service.


async def _kill_web(stand: Stand, rng: random.Random, strike: Strike) -> None:
    strike.begins()
    kill(rng.choice(stand.webs()))


async def _freeze_web(stand: Stand, rng: random.Random, strike: Strike) -> None:
    await _frozen([rng.choice(stand.webs())], PAUSE_SECONDS, strike)


async def _kill_background(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    strike.begins()
    kill(stand.background())


async def _freeze_background(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    await _frozen([stand.background()], PAUSE_SECONDS, strike)


async def _frozen(processes: list[psutil.Process], seconds: float, strike: Strike) -> None:
    strike.begins()
    freeze(processes)
    await asyncio.sleep(seconds)
    thaw(processes)
    strike.ends()


def _crash(point: str, *, after: Play | None = None) -> Play:
    """Let a process die at a crash point, if need be after something that leads there."""

    async def play(stand: Stand, rng: random.Random, strike: Strike) -> None:
        strike.begins()
        # A rebuild is made once, a sweep finds orphans once; in a crowd many pass.
        stand.arm(1 if after is not None else rng.randint(1, 4))
        if after is not None:
            await after(stand, rng, strike)
        deadline = time.perf_counter() + _CRASH_SECONDS_MAX
        while not stand.somebody_died(point):
            if time.perf_counter() > deadline:
                strike.missed = True
                return
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
        strike.begins()

    return play


async def _leave_orphans(stand: Stand, rng: random.Random, strike: Strike) -> None:
    """Lose a whole group of winners: some of their phones ask no more."""
    await _crash("before_the_commit", after=_nothing)(stand, rng, strike)


async def _nothing(_stand: Stand, _rng: random.Random, strike: Strike) -> None:
    strike.begins()


# Valkey.


async def _command(valkey: Redis, *words: str) -> Any:
    return await cast("Awaitable[Any]", valkey.execute_command(*words))  # pyright: ignore[reportUnknownMemberType] - untyped **options


async def _kill_valkey(stand: Stand, rng: random.Random, strike: Strike) -> None:
    strike.begins()
    stand.plant.kill_valkey()
    await asyncio.sleep(rng.uniform(0.5, 2.0))
    await in_thread(stand.plant.restart_valkey)
    strike.ends()


async def _empty_valkey(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    strike.begins()
    stand.plant.kill_valkey()
    await in_thread(stand.plant.restart_valkey)
    strike.ends()


async def _freeze_valkey(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    pid = stand.plant.valkey.pid
    assert pid is not None
    await _frozen([psutil.Process(pid)], PAUSE_SECONDS, strike)


async def _flush_all(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    async with stand.valkey() as valkey:
        strike.begins()
        await _command(valkey, "FLUSHALL")


async def _flush_scripts(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    async with stand.valkey() as valkey:
        strike.begins()
        await _command(valkey, "SCRIPT", "FLUSH")


async def _fill_valkey(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    async with stand.valkey() as valkey:
        strike.begins()
        await _command(valkey, "CONFIG", "SET", "maxmemory", "1mb")
        try:
            await _command(valkey, "SET", "chaos", "a word more")
        except ResponseError:
            pass
        else:
            strike.missed = True
        await asyncio.sleep(_HELD_SECONDS)
        await _command(valkey, "CONFIG", "SET", "maxmemory", "1gb")
        strike.ends()


async def _promote_an_old_copy(stand: Stand, rng: random.Random, strike: Strike) -> None:
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


# PostgreSQL.


async def _kill_postgres(stand: Stand, rng: random.Random, strike: Strike) -> None:
    strike.begins()
    stand.plant.kill_postgres()
    await asyncio.sleep(rng.uniform(0.5, 2.0))
    await in_thread(stand.plant.restart_postgres)
    strike.ends()


async def _restart_postgres(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    strike.begins()
    postmaster, *_ = stand.plant.postgres_family()
    # An immediate shutdown, as pg_ctl calls it.
    postmaster.send_signal(signal.SIGQUIT)
    await in_thread(stand.plant.restart_postgres)
    strike.ends()


async def _freeze_postgres(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    await _frozen(stand.plant.postgres_family(), PAUSE_SECONDS, strike)


async def _gate_backend(stand: Stand) -> psutil.Process:
    async with stand.database(user=SUPERUSER) as database:
        return psutil.Process(await database.fetchval(_GATE_BACKEND))


async def _kill_backend(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    """A backend that dies takes all others with it: PostgreSQL trusts nobody's memory any more, and recovers."""
    backend = await _gate_backend(stand)
    strike.begins()
    kill(backend)


async def _freeze_backend(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    await _frozen([await _gate_backend(stand)], PAUSE_SECONDS, strike)


async def _terminate_backends(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    async with stand.database(user=SUPERUSER) as database:
        strike.begins()
        await database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'clocktower-gate'"
        )


async def _lock_a_row(stand: Stand, rng: random.Random, strike: Strike) -> None:
    """Keep a place locked, as somebody does who edits it by hand and goes to lunch."""
    async with stand.database() as database, database.transaction():
        strike.begins()
        await database.execute(
            "SELECT FROM place WHERE pool_id = $1 AND place_no > $2 FOR UPDATE",
            stand.made.pools[-1],
            rng.randint(0, 50),
        )
        await asyncio.sleep(_LOCK_SECONDS)
        strike.ends()


async def _exhaust_connections(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    """Take every connection that there is, and cut those that the service has."""
    async with _greedy(stand) as take:
        strike.begins()
        await take()
        stand.to_postgres.cut()
        # Whatever came free by that, and was not there before.
        strike.missed = await take() == 0
        await asyncio.sleep(_HELD_SECONDS)
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


async def _fill_the_disk(stand: Stand, _rng: random.Random, strike: Strike) -> None:
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
    await asyncio.sleep(_HELD_SECONDS)
    disk.clear()
    await in_thread(lambda: _restart_if_dead(stand))
    strike.ends()


def _restart_if_dead(stand: Stand) -> None:
    if stand.plant.postgres.has_died():
        stand.plant.restart_postgres()
    else:
        stand.plant.postgres.await_ready()


# The wires between the service and its engines.


def _wire(choose: Callable[[Stand], tuple[Relay, Direction]], *, delays: bool) -> Play:
    async def play(stand: Stand, rng: random.Random, strike: Strike) -> None:
        relay, direction = choose(stand)
        strike.begins()
        if delays:
            direction.delay_seconds = _DELAY_SECONDS
            await asyncio.sleep(_HELD_SECONDS)
            direction.delay_seconds = 0.0
        else:
            # What is under way is lost, and then the line.
            direction.swallows = True
            await asyncio.sleep(rng.uniform(0.05, 0.5))
            relay.cut()
            direction.swallows = False
        strike.ends()

    return play


# Both at once.


def _both_down(*, postgres_first: bool) -> Play:
    async def play(stand: Stand, rng: random.Random, strike: Strike) -> None:
        plant = stand.plant
        restarts = [plant.restart_postgres, plant.restart_valkey]
        strike.begins()
        plant.kill_valkey()
        plant.kill_postgres()
        for restart in restarts if postgres_first else reversed(restarts):
            await asyncio.sleep(rng.uniform(0.3, 1.0))
            await in_thread(restart)
        strike.ends()

    return play


# Storms.


def _storm(kind: str) -> Play:
    async def play(stand: Stand, rng: random.Random, strike: Strike) -> None:
        made = stand.made
        # Of the crowd's pools, so that the probes' places are left to them.
        release = BenchRelease(made.release_id, made.pools[:-1], sum(made.capacities[:-1]))
        if kind == "slow_readers":
            requests = poll_requests(release)
        else:
            signer, seed = stand.keys.passes, rng.getrandbits(32)
            requests = await asyncio.to_thread(claim_requests, signer, release, count=_STRANGERS, seed=seed)
        async with replay_file(requests) as path:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.chaos.storm", kind, stand.address, str(_STORM_SECONDS), str(path)),
                stdout=asyncio.subprocess.PIPE,
            )
            strike.begins()
            try:
                said, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            strike.ends()
        strike.storm = msgspec.json.decode(said, type=Heard)

    return play


_STORMS: Final = (
    Fault("flood", f"{FLOOD_PHONES:,} strangers claim without a pause", _storm("flood")),
    Fault(
        "flood_refused",
        f"the same, where each worker lets {_QUEUE_LIMIT} wait and sends the others away",
        _storm("flood"),
        settings={"ADMISSION_QUEUE_LIMIT": str(_QUEUE_LIMIT)},
    ),
    Fault("retry_storm", f"{RETRYING_PHONES:,} phones send the same claim without a pause", _storm("retries")),
    Fault("reconnect_storm", "phones call, ask, hang up and call again, without a pause", _storm("reconnects")),
    Fault("silent_lines", f"{SILENT_PHONES:,} connections are held open and say nothing", _storm("silence")),
    Fault("slow_senders", f"{SLOW_PHONES:,} phones send their claims a byte at a time", _storm("slow_senders")),
    Fault("slow_readers", f"{SLOW_PHONES:,} phones ask and ask, and read no answer", _storm("slow_readers")),
)


def _crashing(name: str, what: str, point: str, *, after: Play | None = None) -> Fault:
    seam = f"{point}+before_the_commit" if after is _leave_orphans else point
    return Fault(name, what, _crash(point, after=after), seam)


def _wires() -> list[Fault]:
    faults: list[Fault] = []
    for engine, name in (("to_valkey", "Valkey"), ("to_postgres", "PostgreSQL")):
        for way in ("questions", "answers"):
            for delays in (False, True):

                def choose(stand: Stand, engine: str = engine, way: str = way) -> tuple[Relay, Direction]:
                    relay = cast("Relay", getattr(stand, engine))
                    return relay, cast("Direction", getattr(relay, way))

                what = f"come {_DELAY_SECONDS} s late" if delays else "are lost, then the line"
                whose = f"questions to {name}" if way == "questions" else f"{name}'s answers"
                faults.append(
                    Fault(
                        f"{name.lower()}_{way}_{'late' if delays else 'lost'}",
                        f"{whose} {what}",
                        _wire(choose, delays=delays),
                    )
                )
    return faults


_CATALOGUE: Final = (
    Fault("nothing", "nothing breaks: what the others are to be compared with", _nothing),
    Fault("web_killed", "a web worker is killed", _kill_web),
    Fault("web_frozen", f"a web worker is stopped for {PAUSE_SECONDS:.0f} s, past the pending deadline", _freeze_web),
    Fault("background_killed", "the background worker is killed", _kill_background),
    Fault("background_frozen", f"the background worker is stopped for {PAUSE_SECONDS:.0f} s", _freeze_background),
    _crashing("crash_after_script", "a worker dies between script and commit", "after_the_script"),
    _crashing("crash_before_commit", "a worker dies before a group commit", "before_the_commit"),
    _crashing("crash_after_commit", "a worker dies after a group commit", "after_the_commit"),
    _crashing("crash_before_confirmation", "a worker dies before a confirmation", "before_the_confirmation"),
    _crashing("crash_rebuilding", "a worker dies in the middle of a rebuild", "while_rebuilding", after=_flush_all),
    _crashing(
        "crash_before_activation",
        "a worker dies between the commit of a rebuild and its activation",
        "before_the_activation",
        after=_flush_all,
    ),
    _crashing("crash_handing_over", "a worker dies in the middle of a hand-over", "while_handing_over"),
    _crashing("crash_handed_over", "a worker dies after a hand-over, before the gate hears", "after_handing_over"),
    _crashing(
        "crash_sweeping",
        "a worker leaves orphans, and whoever sweeps them dies between the tombstones and the places",
        "while_sweeping",
        after=_leave_orphans,
    ),
    Fault("valkey_killed", "Valkey is killed and comes back empty after a while", _kill_valkey),
    Fault("valkey_emptied", "Valkey is killed and comes back empty at once", _empty_valkey),
    Fault("valkey_frozen", f"Valkey is stopped for {PAUSE_SECONDS:.0f} s", _freeze_valkey),
    Fault("flushall", "FLUSHALL", _flush_all),
    Fault("script_flush", "SCRIPT FLUSH", _flush_scripts),
    Fault("valkey_full", f"Valkey has no memory left for {_HELD_SECONDS:.0f} s", _fill_valkey),
    Fault("old_copy_promoted", "an old copy takes over while the old primary lives on", _promote_an_old_copy),
    Fault("postgres_killed", "PostgreSQL is killed and comes back after a while", _kill_postgres),
    Fault("postgres_restarted", "PostgreSQL is restarted, immediate", _restart_postgres),
    Fault("postgres_frozen", f"PostgreSQL is stopped for {PAUSE_SECONDS:.0f} s", _freeze_postgres),
    Fault("backend_killed", "a backend of PostgreSQL is killed", _kill_backend),
    Fault("backend_frozen", f"a backend of PostgreSQL is stopped for {PAUSE_SECONDS:.0f} s", _freeze_backend),
    Fault("backends_terminated", "PostgreSQL ends every session of the gate", _terminate_backends),
    Fault("row_locked", f"somebody holds row locks on places for {_LOCK_SECONDS:.0f} s", _lock_a_row),
    Fault("connections_exhausted", "others take every connection of PostgreSQL", _exhaust_connections),
    Fault("disk_full", "PostgreSQL's disk is full", _fill_the_disk, on_a_small_disk=True),
    *_wires(),
    Fault(
        "both_down_postgres_first",
        "both engines are killed; PostgreSQL comes back first",
        _both_down(postgres_first=True),
    ),
    Fault(
        "both_down_valkey_first", "both engines are killed; Valkey comes back first", _both_down(postgres_first=False)
    ),
    *_STORMS,
    Fault("clocks_apart", "the workers' clocks are two hours apart", _nothing, "clocks_apart"),
)
FAULTS: Final[Mapping[str, Fault]] = {fault.name: fault for fault in _CATALOGUE}
