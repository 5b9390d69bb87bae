"""Peers as real processes on the real engines, beside a release that the gate itself has put into force."""

import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from os import environ
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from app.booking.gate.gate import Gate
from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of
from app.core.clock import Clock
from app.core.embedded import Engines
from loadtest.bench.peers import CannotRunPeerError, Peer, Surroundings
from loadtest.bench.town import BenchRelease, book_places, make_release, put_claim
from loadtest.http1 import Network, Phone
from tests.conftest import make_settings

POOLS: Final = 12
PLACES: Final = 5
# A pool whose places were all taken, and the takers written to PostgreSQL, before the peer started.
SETTLED: Final = 0
START_SECONDS_MAX: Final = 30.0
FAR_FUTURE_MS: Final = 4_102_444_800_000  # 2100-01-01


class Said(NamedTuple):
    """An answer, read: its status, and its state or code in a word."""

    status: int
    word: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Standing:
    """A peer that serves a release of `POOLS` pools with `PLACES` places each."""

    peer: Peer
    around: Surroundings
    network: Network
    _untouched: list[int] = field(default_factory=lambda: [n for n in range(POOLS) if n != SETTLED])

    def untouched(self) -> int:
        """Return the ordinal of a pool of which nobody has claimed anything yet."""
        return self._untouched.pop()

    def sign(
        self, *people: UUID, pools: set[int] | None = None, expires_ms: int = FAR_FUTURE_MS, key: str | None = None
    ) -> str:
        """Sign a pass for these people and these pools (all of them unless told)."""
        mask = mask_of(set(range(len(self.around.pool_ids))) if pools is None else pools)
        contents = Pass.of(
            self.around.release_id, uuid4(), expires_ms, tuple(PassPerson(person.bytes, mask, 0) for person in people)
        )
        return PassSigner(key or self.around.pass_key).sign(contents)

    def claim(
        self, *ordinals: int, people: tuple[UUID, ...] = (), pass_text: str | None = None, claim_id: UUID | None = None
    ) -> bytes:
        """Return the request for these pools in order of preference, for a new person unless told."""
        people = people or (uuid4(),)
        body = {
            "release": self.around.release_id,
            "people": people,
            "choices": [self.around.pool_ids[ordinal] for ordinal in ordinals],
        }
        return put_claim(claim_id or uuid4(), pass_text or self.sign(*people), msgspec.json.encode(body))

    async def ask(self, claim: bytes) -> Said:
        """Send a claim on a connection of its own."""
        return await self.say(Phone(self.network), claim)

    async def say(self, phone: Phone, claim: bytes) -> Said:
        """Send a claim on this phone's connection."""
        (request,) = self.peer.requests([claim], self.around)
        answer = await phone.send(request)
        body = msgspec.json.decode(answer.body)
        return Said(answer.status, body.get("code") or body.get("state", ""), body)

    async def winners(self) -> int:
        """Return how many places somebody has."""
        return await self.peer.winners(self.around)


@asynccontextmanager
async def stand(peer: Peer, engines: Engines, database_url: str, directory: Path) -> AsyncGenerator[Standing]:
    """Start a peer on a release that the gate has put into force; skip the test where this machine cannot run it."""
    try:
        peer.install(lambda _sentence: None)
    except CannotRunPeerError as missing:
        pytest.skip(str(missing))
    # Nobody signs in here, so WeChat is never asked.
    settings = make_settings(database_url, engines.redis_url, "http://127.0.0.1:9")
    release = await _publish(database_url)
    gate = await Gate.open(settings, Clock())
    try:
        epoch = (await gate.release(release.release_id)).epoch
    finally:
        await gate.close()
    around = Surroundings(
        redis_socket=Path(unquote(engines.redis_url.removeprefix("unix://"))),
        database_url=database_url,
        pass_key=settings.pass_key.get_secret_value(),
        release_id=release.release_id,
        pool_ids=release.pool_ids,
        epoch=epoch,
        places=PLACES,
        state_dir=directory,
        port=_free_port(),
    )
    await peer.prepare(around)
    with _running(peer, around, directory / "peer.log"):
        async with Network(f"http://127.0.0.1:{around.port}") as network:
            yield Standing(peer, around, network)


async def _publish(database_url: str) -> BenchRelease:
    connection = await asyncpg.connect(database_url)
    try:
        release = await make_release(connection, pools=POOLS, places_each=PLACES)
        # The first pool, by its ordinal.
        await book_places(connection, release, places=PLACES, accounts=PLACES)
    finally:
        await connection.close()
    return release


@contextmanager
def _running(peer: Peer, around: Surroundings, log_path: Path) -> Generator[None]:
    command = peer.command(around)
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - a peer's own command
            list(command.arguments),
            env={**environ, **command.environment},
            cwd=command.directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not _listens(around.port):
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline, log_path.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(START_SECONDS_MAX)
    assert log_path.read_text() == "", "a peer says nothing while all goes well"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
