"""Real engines for every test: PostgreSQL and Valkey are started once, and each module gets a database of its own."""

import asyncio
import itertools
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, Protocol

import asyncpg
import httpx2
import pytest
import structlog
import uvicorn
import uvloop
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from pydantic import AnyHttpUrl, SecretStr
from redis.asyncio import Redis
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from starlette.types import ASGIApp

from app.accounts import service as accounts
from app.accounts.policy import Role, ScopeKind
from app.booking.gate.protocol import GateProtocol
from app.core.clock import Clock
from app.core.db import sqlalchemy_url, transaction
from app.core.embedded import Engines, start_engines
from app.core.logs import _without_exception_text
from app.core.redis import connect_redis
from app.core.settings import ENVIRONMENT_PREFIX, Settings
from app.main import create_api, with_gate_in_front
from app.wechat.fake.demo import DEMO_APP_ID, DEMO_APP_SECRET
from app.wechat.fake.process import FakeWeChatProcess
from tests.log_watch import LOG_WATCH

ROOT: Final = Path(__file__).parent.parent
TEMPLATE: Final = "clocktower_template"
SERVER_START_SECONDS: Final = 20.0

_OWN_DIRECTORY: Final = pytest.StashKey[Path]()
_KEPT_DIRECTORY: Final = pytest.StashKey[Path]()

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Let a run be interrupted, and give it a directory that no other run closes, with room for a socket's name.

    A shell has what it runs in the background ignore Ctrl-C, and so would all that the tests start.
    Root's engines run as another user, who has to get through to their data; pytest's own directory is closed to
    everybody else whenever a run begins, and its path has the name of who runs it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        # Of several processes the first alone hears Ctrl-C, and ends the others: each stops its engines, and a second
        # interrupt would keep it from that.
        os.setpgrp()
    if not config.option.basetemp:
        # Each process of a run, and each test, adds a name; sockets stand below that.
        own = Path(tempfile.mkdtemp(prefix="ct-tests-"))
        own.chmod(0o711)
        config.option.basetemp = str(own / "r")
        config.stash[_OWN_DIRECTORY] = own


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep that directory if something failed that it may explain."""
    own = session.config.stash.get(_OWN_DIRECTORY, None)
    if own is not None and exitstatus in {pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED}:
        session.config.stash[_KEPT_DIRECTORY] = own


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what tests have recorded for the end of the run, in whichever of its processes, and what is kept of it."""
    sections: dict[str, list[str]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, line in report.user_properties:
            sections.setdefault(name, []).append(str(line))
    for name, lines in sections.items():
        terminalreporter.section(name)
        terminalreporter.write("".join(f"{line}\n" for line in lines))
    kept = config.stash.get(_KEPT_DIRECTORY, None)
    if kept is not None:
        terminalreporter.write_line(f"What the tests wrote is kept in {kept}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it otherwise, also where pytest was only asked for its help."""
    own = config.stash.get(_OWN_DIRECTORY, None)
    if own is not None and _KEPT_DIRECTORY not in config.stash:
        shutil.rmtree(own)


class SignIn(Protocol):
    """Signs somebody in; gives the headers of their requests."""

    def __call__(
        self, name: str, *, roles: Sequence[Role] = (), station_id: object = None
    ) -> Awaitable[dict[str, str]]: ...


@pytest.fixture(scope="session")
def anyio_backend() -> Literal["asyncio"]:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> None:  # pyright: ignore[reportUnusedFunction] - used by pytest
    """Take the shell's own settings away: a test must not reach somebody's real database."""
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def _logs_tell_no_secrets(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:  # pyright: ignore[reportUnusedFunction] - used by pytest
    """Read every log of the run; a secret or a personal fact in one fails the run, and the test behind it is named.

    What the last test's own processes wrote to standard error is seen by pytest after this, and by nobody here.
    """
    LOG_WATCH.begin()
    yield
    LOG_WATCH.end()
    LOG_WATCH.read_files(tmp_path_factory.getbasetemp())
    assert not LOG_WATCH.finds, f"Logged, and must not be (tests/log_watch.py):\n{LOG_WATCH.told()}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Read what the processes of a test wrote to where it writes itself."""
    LOG_WATCH.read(report.capstderr, f"{report.nodeid}: standard error")


@pytest.fixture(scope="session", autouse=True)
def _events_in_logging() -> None:  # pyright: ignore[reportUnusedFunction] - used by pytest
    """Send events through logging, where `caplog` finds them; the service's own set-up would take its handlers away."""
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            # As the service writes exceptions: by their kinds and places.
            _without_exception_text,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Generator[Engines]:
    with start_engines(tmp_path_factory.mktemp("engines"), progress=lambda _sentence: None) as running:
        yield running


@pytest.fixture(scope="session")
def fake_wechat_url() -> Generator[str]:
    with FakeWeChatProcess.start() as fake:
        yield fake.base_url


_HANG_UP = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}' AND usename = user"


async def _execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def dsn_of(engines: Engines, database: str) -> str:
    """Return the address of another database of the same server."""
    address, _, query = engines.database_dsn.partition("?")
    return f"{address.rpartition('/')[0]}/{database}?{query}"


def migrate(dsn: str, *, to: str = "head", down: bool = False) -> None:
    """Bring a database to the newest migration, or up, or down, to another."""

    def move(connection: Connection) -> None:
        config = Config(str(ROOT / "alembic.ini"))
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, to)

    async def run() -> None:
        engine = create_async_engine(sqlalchemy_url(dsn), poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                await connection.run_sync(move)
                await connection.commit()
        finally:
            await engine.dispose()

    asyncio.run(run())


@pytest.fixture(scope="session")
def template(engines: Engines) -> str:
    """Migrate once; every module's database is a copy, which takes some 50 ms."""
    asyncio.run(_execute(engines.database_dsn, f"CREATE DATABASE {TEMPLATE}"))
    migrate(dsn_of(engines, TEMPLATE))
    return TEMPLATE


@pytest.fixture(scope="module")
def database_url(engines: Engines, template: str) -> Generator[str]:
    name = f"test_{next(_numbers)}"
    asyncio.run(_execute(engines.database_dsn, f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield dsn_of(engines, name)
    finally:
        # Not WITH (FORCE), which may not end an autovacuum worker that happens to be there; DROP alone does that.
        asyncio.run(_execute(engines.database_dsn, _HANG_UP.format(name=name)))
        asyncio.run(_execute(engines.database_dsn, f"DROP DATABASE {name}"))


@pytest.fixture
def redis_url(engines: Engines) -> str:
    """Give an empty Valkey to every test."""

    async def flush() -> None:
        async with Redis.from_url(engines.redis_url) as redis:  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
            await redis.flushall()  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues] - sync and async in one type

    asyncio.run(flush())
    return engines.redis_url


def make_settings(database_url: str, redis_url: str, wechat_url: str) -> Settings:
    """Return settings for these engines; everything else as it is by default."""
    return Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        token_key=SecretStr("token-key-of-the-tests-0123456789abcdef"),
        pass_key=SecretStr("pass-key-of-the-tests-0123456789abcdef0"),
        sealing_key=SecretStr("sealing-key-of-the-tests-0123456789abcd"),
        wechat_base_url=AnyHttpUrl(wechat_url),
        wechat_app_id=DEMO_APP_ID,
        wechat_app_secret=SecretStr(DEMO_APP_SECRET),
    )


@pytest.fixture
def settings(database_url: str, redis_url: str, fake_wechat_url: str) -> Settings:
    return make_settings(database_url, redis_url, fake_wechat_url)


@pytest.fixture
async def engine(database_url: str) -> AsyncGenerator[AsyncEngine]:
    """Connect to the module's database, apart from the application's own pool."""
    fresh = create_async_engine(sqlalchemy_url(database_url), poolclass=NullPool)
    yield fresh
    await fresh.dispose()


@pytest.fixture
async def redis(settings: Settings) -> AsyncGenerator[Redis]:
    connected = connect_redis(settings)
    yield connected
    await connected.aclose()


@pytest.fixture
def api(settings: Settings) -> FastAPI:
    """Make FastAPI without its lifespan; `app` runs that."""
    return create_api(settings)


@pytest.fixture
async def app(api: FastAPI, settings: Settings) -> AsyncGenerator[ASGIApp]:
    """Run the whole application, gate in front, in this process."""
    async with api.router.lifespan_context(api):
        yield with_gate_in_front(api, settings)


@pytest.fixture
async def client(app: ASGIApp) -> AsyncGenerator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://clocktower.test") as connected:
        yield connected


@pytest.fixture
def sign_in(engine: AsyncEngine, settings: Settings) -> SignIn:
    """Sign `demo-<name>` in, with roles everywhere or at one station, and give the headers to send."""

    async def signed_in(name: str, *, roles: Sequence[Role] = (), station_id: object = None) -> dict[str, str]:
        now = Clock().now()
        async with transaction(engine) as db:
            tokens = await accounts.sign_in(db, openid=f"demo-{name}", unionid=None, now=now, settings=settings)
            for role in roles:
                await accounts.grant_role(
                    db,
                    account_id=tokens.account_id,
                    role=role,
                    scope_kind=ScopeKind.STATION if station_id else None,
                    scope_id=station_id,  # pyright: ignore[reportArgumentType] - a UUID, kept loose for callers
                    granted_by=None,
                    now=now,
                )
        return {"Authorization": f"Bearer {tokens.access_token}"}

    return signed_in


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        # Ctrl-C belongs to pytest.
        yield


@contextmanager
def serving(
    make_app: Callable[[], ASGIApp],
    *,
    carrier: type[asyncio.Protocol] = GateProtocol,
    keep_alive_seconds: int = 60,
) -> Generator[str]:
    """Serve an application on a free port of loopback, in a thread; yields its base address once it listens.

    `carrier` speaks HTTP: unless told, as in a web worker.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        make_app,
        factory=True,
        http=carrier,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=keep_alive_seconds,
        timeout_graceful_shutdown=5,
    )
    server = _Server(config)
    started = threading.Event()
    failures: list[BaseException] = []

    async def serve() -> None:
        startup = server.startup

        async def startup_and_tell(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets=sockets)
            started.set()

        server.startup = startup_and_tell
        await server.serve(sockets=[listener])

    def run() -> None:
        try:
            # The loop of a web worker.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())
        except BaseException as error:  # noqa: BLE001 - told to the waiting test below
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="served", daemon=True)
    thread.start()
    try:
        assert started.wait(SERVER_START_SECONDS), "the server did not start in time"
        assert not failures, failures
        assert server.started, "the server ended while starting"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(SERVER_START_SECONDS)
        listener.close()


@pytest.fixture
def base_url(settings: Settings) -> Generator[str]:
    """Serve the whole application on a real socket."""
    with serving(lambda: with_gate_in_front(create_api(settings), settings)) as address:
        yield address


@pytest.fixture
async def served(base_url: str) -> AsyncGenerator[httpx2.AsyncClient]:
    """Connect to the served application over its socket."""
    async with httpx2.AsyncClient(base_url=base_url) as connected:
        yield connected
