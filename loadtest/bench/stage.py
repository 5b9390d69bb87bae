"""Engines, servers and their processes for the time of a bench: ours as `clocktower serve` runs it, peers beside it.

Everything stands on the same PostgreSQL and the same Valkey, and each server has the first core to itself while it is
asked; the engines and the load share the second.
"""

import asyncio
import itertools
import os
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote

import asyncpg
import httpx2
import psutil

from app.booking.gate.passes import PassSigner
from app.cli import surroundings
from app.cli.own_server import OwnServer
from app.core.embedded import Engines, start_engines
from app.core.embedded.postgres import SUPERUSER
from app.core.settings import ENVIRONMENT_PREFIX
from loadtest.bench.machine import OTHER_CORE, SERVER_CORE, CannotBenchError, cpu_seconds, family_of, pin, whole_family
from loadtest.bench.peers import Command, Peer, Surroundings
from loadtest.bench.town import BenchRelease
from loadtest.threads import in_thread

START_SECONDS_MAX: Final = 60.0
_LOOK_EVERY_SECONDS: Final = 0.05
_STOP_SECONDS_MAX: Final = 15.0
_SECRET_BYTES: Final = 32
# Nobody signs in on the stage, so WeChat is never asked; port 9 is where nobody listens.
_NO_WECHAT: Final = ("http://127.0.0.1:9", "bench", "bench")


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor time in microseconds, by who had it."""

    server: float
    redis: float
    postgres: float

    @property
    def total(self) -> float:
        """Return all of it."""
        return self.server + self.redis + self.postgres

    def __sub__(self, other: Self) -> "Spent":
        return Spent(self.server - other.server, self.redis - other.redis, self.postgres - other.postgres)

    def as_document(self) -> dict[str, float]:
        """Return it for the JSON report."""
        return {"server": self.server, "redis": self.redis, "postgres": self.postgres, "total": self.total}

    def each(self, count: int) -> "Spent":
        """Return the share of one among so many."""
        count = max(count, 1)
        return Spent(self.server / count, self.redis / count, self.postgres / count)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: where it answers, and which processes it consists of."""

    name: str
    address: str
    pids: tuple[int, ...]


class Stage:
    """Both engines under one data directory, and whoever serves on them."""

    def __init__(self, engines: Engines, data_dir: Path, stack: ExitStack) -> None:
        self.engines = engines
        self.data_dir = data_dir
        self._stack = stack
        self._numbers = itertools.count()
        self._one_worker: Server | None = None
        keys = {name: secrets.token_urlsafe(_SECRET_BYTES) for name in surroundings.SECRETS}
        self.environment: Mapping[str, str] = {
            surroundings.DATABASE_URL: engines.database_dsn,
            surroundings.REDIS_URL: engines.redis_url,
            **keys,
            **dict(zip(surroundings.WECHAT, _NO_WECHAT, strict=True)),
            ENVIRONMENT_PREFIX + "LOG_LEVEL": "warning",
        }
        self.pass_key = keys[ENVIRONMENT_PREFIX + "PASS_KEY"]
        self.signer = PassSigner(self.pass_key)
        self.redis_socket = Path(unquote(engines.redis_url.removeprefix("unix://")))

    async def serve(self, *, workers: int = 1, given: Mapping[str, str] | None = None) -> Server:
        """Start our own server, as a town runs it, and return it once it answers."""
        log_path = self.data_dir / f"serve-{next(self._numbers)}.log"
        start = partial(
            OwnServer.start,
            self.data_dir / "unused",
            port=0,
            workers=workers,
            log_path=log_path,
            given={**self.environment, **(given or {})},
        )
        own = await in_thread(start, undo=OwnServer.stop)
        self._stack.callback(own.stop)
        family = family_of(own.pid)
        webs = tuple(pid for pid in family if _is_web_worker(pid))
        pin(family, {OTHER_CORE})
        # One worker has a core to itself; two have one each, and share them with the load.
        for number, pid in enumerate(webs):
            pin([pid], {SERVER_CORE if number == 0 else OTHER_CORE})
        return Server("clocktower", own.address, webs)

    async def one_worker(self) -> Server:
        """Return our own server with one worker; it is started when it is first asked for."""
        if self._one_worker is None:
            self._one_worker = await self.serve()
        return self._one_worker

    def surroundings(self, peer: Peer, release: BenchRelease, *, epoch: int, places: int) -> Surroundings:
        """Return what a peer is to find."""
        state_dir = self.data_dir / "peers" / peer.name
        state_dir.mkdir(parents=True, exist_ok=True)
        return Surroundings(
            redis_socket=self.redis_socket,
            database_url=self.engines.database_dsn,
            pass_key=self.pass_key,
            release_id=release.release_id,
            pool_ids=release.pool_ids,
            epoch=epoch,
            places=places,
            state_dir=state_dir,
            port=free_port(),
        )

    async def start_peer(self, peer: Peer, around: Surroundings) -> Server:
        """Prepare and start a peer, and return it once its port answers. Raises `CannotBenchError`."""
        await peer.prepare(around)
        command = peer.command(around)
        process = self._launch(peer.name, command)
        deadline = time.monotonic() + START_SECONDS_MAX
        while not _listens(around.port):
            if process.poll() is not None or time.monotonic() > deadline:
                last = (self.data_dir / f"{peer.name}.log").read_text("utf-8", errors="replace").strip()[-600:]
                raise CannotBenchError(f"The peer {peer.name} did not start: {last or 'it said nothing'}")
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
        # A server that forks its workers has them by the time it has answered once, whatever it says.
        async with httpx2.AsyncClient(timeout=START_SECONDS_MAX) as client:
            await client.get(f"http://127.0.0.1:{around.port}/")
        pids = tuple(family_of(process.pid))
        pin(pids, {SERVER_CORE})
        return Server(peer.name, f"http://127.0.0.1:{around.port}", pids)

    def _launch(self, name: str, command: Command) -> subprocess.Popen[bytes]:
        with (self.data_dir / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - a peer's own command
                list(command.arguments),
                env={**os.environ, **command.environment},
                cwd=command.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._stack.callback(_end, process)
        return process

    def spent(self, server: Server) -> Spent:
        """Return what a server and the engines have cost so far."""
        postgres = self.engines.postgres_pid
        valkey = self.engines.valkey_pid
        assert postgres is not None  # noqa: S101 - they run as long as the stage stands
        assert valkey is not None  # noqa: S101 - as above
        return Spent(
            cpu_seconds(server.pids) * 1e6, cpu_seconds([valkey]) * 1e6, cpu_seconds(family_of(postgres)) * 1e6
        )

    @asynccontextmanager
    async def database(self) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
        """Connect to PostgreSQL, as long as the context lasts."""
        connection = await asyncpg.connect(self.engines.database_dsn)
        try:
            yield connection
        finally:
            await connection.close()

    async def checkpoint(self) -> None:
        """Have PostgreSQL make its next checkpoint now, and not in the middle of some lap, which would pay for it."""
        connection = await asyncpg.connect(self.engines.database_dsn, user=SUPERUSER)
        try:
            await connection.execute("CHECKPOINT", timeout=None)
        finally:
            await connection.close()

    async def epoch_in_force(self, server: Server, release: BenchRelease) -> int:
        """Have the release's state made, if it is not, and return its epoch. Raises `CannotBenchError`."""
        path = f"{server.address}/v1/releases/{release.release_id}/availability"
        deadline = time.monotonic() + START_SECONDS_MAX
        async with httpx2.AsyncClient() as client:
            while not (answer := await client.get(path)).is_success:
                if time.monotonic() > deadline:
                    raise CannotBenchError(f"The release did not come into force: {answer.text}")
                await asyncio.sleep(_LOOK_EVERY_SECONDS)
        async with self.database() as database:
            epoch: int = await database.fetchval("SELECT epoch FROM release WHERE id = $1", release.release_id)
        return epoch


@asynccontextmanager
async def stage(data_dir: Path, say: Callable[[str], None]) -> AsyncGenerator[Stage]:
    """Start both engines, on the second core, and stop them and every server with the context."""
    with ExitStack() as stack:
        engines = await in_thread(partial(start_engines, data_dir / "engines", progress=say), undo=Engines.stop)
        stack.callback(engines.stop)
        for pid in (engines.postgres_pid, engines.valkey_pid):
            if pid is not None:
                pin(family_of(pid), {OTHER_CORE})
        yield Stage(engines, data_dir, stack)


def free_port() -> int:
    """Return a port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_web_worker(pid: int) -> bool:
    try:
        return "app.cli.web" in psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a peer and what it started at once: nothing that it could still do is of use to anybody."""
    family = whole_family(process.pid)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=_STOP_SECONDS_MAX)
    process.wait()


def processes_of(servers: Sequence[Server]) -> list[int]:
    """Return the processes of several servers."""
    return [pid for server in servers for pid in server.pids]
