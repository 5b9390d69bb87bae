"""One round's service: `clocktower serve` as a town runs it, on engines and behind wires that can be broken.

Times that a server waits are shorter than by default, so that a round lasts seconds: what a deadline is for comes as
surely after three seconds as after fifteen.
"""

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import httpx2
import psutil
from redis.asyncio import Redis

from app.booking.gate.passes import PassSigner
from app.cli.own_server import OwnServer
from app.core.embedded.directories import POSTGRES_PORT
from app.core.embedded.postgres import DATABASE, ROLE
from app.core.settings import ENVIRONMENT_PREFIX
from loadtest.threads import in_thread
from tests.booking.gate.builders import MadeRelease, make_release
from tests.chaos.crowd import Keys
from tests.chaos.engines import Plant, Template
from tests.chaos.seam import ARMED, died_at, environment
from tests.relay import Relay, relaying

# 150 places that the crowd fights for, and 150 that tell whether anybody is served.
CAPACITIES: Final = (30, 30, 30, 30, 30, 150)
# The fourth and the fifth are at the same hour: nobody can have both.
_START_HOURS: Final = (48, 49, 50, 51, 51, 52)
WAITLIST_LIMIT: Final = 12
# Fewer than some of the crowd would like.
PERSON_LIMIT: Final = 2
ACCOUNT_LIMIT: Final = 4
WORKERS: Final = 2
SETTINGS: Final[Mapping[str, str]] = {
    "COMMIT_WAIT_MS": "1000",
    "COMMIT_TIMEOUT_MS": "2000",
    "PENDING_DEADLINE_MS": "3000",
    "REDIS_TIMEOUT_MS": "1000",
    "SWEEP_INTERVAL_MS": "250",
    "LOG_LEVEL": "warning",
}
# For how long a claim may be pending before the sweep looks after it.
PENDING_SECONDS: Final = 3.0
PAUSE_SECONDS: Final = PENDING_SECONDS + 1.0
_READY_SECONDS_MAX: Final = 30.0
_LOOK_EVERY_SECONDS: Final = 0.05
_SECRET_BYTES: Final = 32


@dataclass(slots=True)
class Stand:
    """What a fault can reach."""

    directory: Path
    plant: Plant
    server: OwnServer
    to_valkey: Relay
    to_postgres: Relay
    made: MadeRelease
    keys: Keys

    @property
    def address(self) -> str:
        """Return where the phones call."""
        return self.server.address

    def webs(self) -> Sequence[psutil.Process]:
        """Return the web workers that live."""
        return self._children("app.cli.web")

    def background(self) -> psutil.Process:
        """Return the background worker. Raises `LookupError` while there is none."""
        for process in self._children("worker"):
            return process
        raise LookupError("no background worker runs")

    def everybody(self) -> Mapping[str, Sequence[psutil.Process]]:
        """Return all processes of the service and its engines that live, by what they are."""
        return {
            "web worker": self.webs(),
            "background worker": self._children("worker"),
            "serve": [psutil.Process(self.server.pid)],
            "Valkey": self.plant.valkeys(),
            "PostgreSQL, a process": self.plant.postgres_family(),
        }

    def _children(self, word: str) -> Sequence[psutil.Process]:
        found: list[psutil.Process] = []
        for process in psutil.Process(self.server.pid).children():
            try:
                if word in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def arm(self, passages: int) -> None:
        """Have one process die at each crash point that is open, when it comes there so often from now on."""
        (self.directory / ARMED).write_text(str(passages))

    def somebody_died(self, point: str) -> bool:
        """Tell whether one has died there."""
        return (self.directory / died_at(point)).exists()

    @asynccontextmanager
    async def valkey(self, *, second: bool = False) -> AsyncGenerator[Redis]:
        """Connect to a Valkey itself, past the relay."""
        path = self.plant.second_valkey_socket if second else self.plant.valkey_socket
        async with Redis(unix_socket_path=str(path)) as redis:
            yield redis

    @asynccontextmanager
    async def database(self, *, user: str = ROLE) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
        """Connect to PostgreSQL itself, past the relay."""
        connection = await asyncpg.connect(self.plant.database_dsn, user=user)
        try:
            yield connection
        finally:
            await connection.close()

    async def ready(self, limit_seconds: float = _READY_SECONDS_MAX) -> None:
        """Return once every process runs and both engines answer it. Raises `TimeoutError`."""
        async with asyncio.timeout(limit_seconds), httpx2.AsyncClient(base_url=self.address, timeout=2.0) as client:
            while True:
                try:
                    everybody = len(self.webs()) == WORKERS and self.background()
                    if everybody and (await client.get("/health/ready")).is_success:
                        return
                except (httpx2.TransportError, LookupError):
                    pass
                await asyncio.sleep(_LOOK_EVERY_SECONDS)


@asynccontextmanager
async def standing(
    directory: Path,
    template: Template,
    *,
    seam: str = "",
    on_a_small_disk: bool = False,
    more_settings: Mapping[str, str] | None = None,
    made: MadeRelease | None = None,
) -> AsyncGenerator[Stand]:
    """Start everything for one round, publish its release, and leave no process and no file behind.

    `made` is the round's release where the template has it already.
    """
    wires = directory / "wires"
    plant = Plant(directory / "data", template)
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(wires.mkdir, mode=0o700, parents=True)
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.push_async_callback(in_thread, plant.stop)
        await in_thread(lambda: plant.start(on_a_small_disk=on_a_small_disk))
        valkey_wire, postgres_wire = wires / "valkey.sock", wires / plant.postgres_socket.name
        to_valkey = await stack.enter_async_context(relaying(valkey_wire, plant.valkey_socket))
        to_postgres = await stack.enter_async_context(relaying(postgres_wire, plant.postgres_socket))
        secret = {name: secrets.token_urlsafe(_SECRET_BYTES) for name in ("TOKEN_KEY", "PASS_KEY", "SEALING_KEY")}
        settings = {
            **SETTINGS,
            **(more_settings or {}),
            **secret,
            "DATABASE_URL": f"postgresql://{ROLE}@/{DATABASE}?host={wires}&port={POSTGRES_PORT}",
            "REDIS_URL": f"unix://{valkey_wire}",
            # Nobody signs in; port 9 is where nobody listens.
            "WECHAT_BASE_URL": "http://127.0.0.1:9",
            "WECHAT_APP_ID": "chaos",
            "WECHAT_APP_SECRET": "chaos",
        }
        given = {ENVIRONMENT_PREFIX + name: value for name, value in settings.items()}
        server = await in_thread(
            lambda: OwnServer.start(
                directory / "unused",
                port=0,
                workers=WORKERS,
                log_path=directory / "serve.log",
                given={**given, **(environment(seam, directory) if seam else {})},
            ),
            undo=OwnServer.stop,
        )
        stack.push_async_callback(_stop, server)
        made = made or await _publish(plant)
        keys = Keys(PassSigner(secret["PASS_KEY"]), secret["TOKEN_KEY"].encode())
        yield Stand(directory, plant, server, to_valkey, to_postgres, made, keys)


async def _publish(plant: Plant) -> MadeRelease:
    connection = await asyncpg.connect(plant.database_dsn)
    try:
        return await make_release(
            connection,
            capacities=CAPACITIES,
            start_hours=_START_HOURS,
            waitlist_limit=WAITLIST_LIMIT,
            person_limit=PERSON_LIMIT,
            account_limit=ACCOUNT_LIMIT,
        )
    finally:
        await connection.close()


async def _stop(server: OwnServer) -> None:
    """Stop the server, whatever a fault has left of it."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    for process in family:
        try:
            process.resume()
        except psutil.NoSuchProcess:
            continue
    await in_thread(server.stop)


def left_behind(directory: Path) -> list[psutil.Process]:
    """Return the processes that still work in a round's directory, or were started for it."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            theirs = [process.cwd(), *process.cmdline(), process.environ().get("CLOCKTOWER_DATABASE_URL", "")]
            is_alive = process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
        except (psutil.Error, OSError):
            continue
        if is_alive and any(str(directory) in words for words in theirs):
            found.append(process)
    return found
