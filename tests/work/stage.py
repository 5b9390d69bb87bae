"""One web worker, to be watched at work: a gate on real engines, its door, and the counters around them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.claims import service as claims
from app.booking.gate.desk import Desk
from app.booking.gate.errors import Rebuilding
from app.booking.gate.gate import Gate
from app.booking.gate.passes import PassSigner
from app.core.clock import Clock, iso_of_ms
from app.core.db import create_engine, transaction
from app.core.settings import Settings
from tests.booking.gate.builders import MadeRelease, make_release
from tests.conftest import make_settings
from tests.work.engines import CountingEngines, counts_inside
from tests.work.figures import Figures
from tests.work.phones import Asking, Connection, Door, Phone
from tests.work.python_work import PythonWork
from tests.work.redis_work import RedisWork, observed

_SEED: Final = 20_261_201
_ANSWER_SECONDS_MAX: Final = 30.0
_POLL_SECONDS: Final = 0.002
_POLLS_MAX: Final = 10_000
# Tasks that end when an answer is told have their last callbacks in the turns of the loop after it.
_LAST_TURNS: Final = 5
_SECONDS_AROUND: Final = range(-3, 10)
_ENTERING_TRIES_MAX: Final = 10
# Times that a machine under load does not reach: what is counted is the way on which nothing goes wrong, and no look
# of the gate's own at PostgreSQL falls into a count.
_PATIENCE: Final[Mapping[str, int]] = dict.fromkeys(
    ("redis_timeout_ms", "admission_wait_ms", "commit_wait_ms", "sweep_interval_ms"), 60_000
)
# Nobody signs in, so WeChat is not asked.
_NO_WECHAT: Final = "http://127.0.0.1:9"


class StandingClock(Clock):
    """A clock that stands until it is put forward: whether a second is over must not decide what is counted."""

    def __init__(self) -> None:
        super().__init__()
        self._ms = super().now_ms()

    def now(self) -> datetime:
        """Return the instant at which it stands."""
        return datetime.fromtimestamp(self._ms / 1000, tz=UTC)

    def now_ms(self) -> int:
        """Return it as Unix milliseconds."""
        return self._ms

    def put_forward(self, seconds: int) -> None:
        """Let so many seconds go by."""
        self._ms += seconds * 1_000


class EnteredRelease(NamedTuple):
    """A release that the worker has met, and the key that names the claims of which Redis waits to hear."""

    made: MadeRelease
    pending_key: str


class Stage:
    """What a scenario acts on. Made by `staged`."""

    def __init__(
        self,
        settings: Settings,
        gate: Gate,
        clock: StandingClock,
        redis: RedisWork,
        engines: CountingEngines,
        db: "asyncpg.Connection[asyncpg.Record]",
        observer: "asyncpg.Connection[asyncpg.Record]",
        api: AsyncEngine,
    ) -> None:
        self.clock = clock
        self._gate = gate
        self._redis = redis
        self._line = engines.line
        self._db = db
        self._observer = observer
        self._api = api
        self._python = PythonWork()
        self._signer = PassSigner(settings.pass_key.get_secret_value())
        self._door = Door(Desk(gate, self._signer))
        # Everybody and every claim is drawn from it: two runs differ in nothing but the ids of releases and pools.
        self._chance = Random(_SEED)  # noqa: S311 - a sequence to be repeated
        self._connections: list[Connection] = []

    async def release(self, *, places: Sequence[int], waitlist_limit: int = 0) -> EnteredRelease:
        """Publish a release with pools of so many places, which the worker has met already."""
        made = await make_release(self._db, capacities=places, waitlist_limit=waitlist_limit)
        for _ in range(_ENTERING_TRIES_MAX):
            # A machine under load may not enter it in time; what was begun goes on, and the next try finds it.
            with contextlib.suppress(Rebuilding):
                entered = await self._gate.release(made.release_id)
                return EnteredRelease(made, entered.keys.pending)
        raise AssertionError("the release was not entered")

    def phones(self, release: EnteredRelease, count: int, *, people: int = 1) -> list[Phone]:
        """Return new phones, each with a connection of its own and a pass that the worker has not seen."""
        connections = [self._door.connect() for _ in range(count)]
        self._connections += connections
        return [Phone(connection, release.made, self._signer, self._chance, people) for connection in connections]

    def new_id(self) -> UUID:
        """Return an id for a claim."""
        return UUID(int=self._chance.getrandbits(128), version=4)

    def hang_up(self) -> None:
        """End every phone's connection."""
        for connection in self._connections:
            connection.hang_up()
        self._connections.clear()

    async def ask(self, release: EnteredRelease, asking: Sequence[Asking], *, word: str) -> None:
        """Send these requests in one tick of the loop, and wait until all that comes of them is done.

        Each is to be answered with this word.
        """
        await self._answered(release, asking)
        _check(asking, word)

    async def measure(self, release: EnteredRelease, asking: Sequence[Asking], *, word: str) -> Figures:
        """Do the same, and count what it takes."""

        async def ask() -> None:
            with self._python:
                await self._answered(release, asking)

        figures = await self._counted(ask)
        _check(asking, word)
        return {
            **figures,
            "answer_bytes": sum(connection.heard().size_bytes for connection, _ in asking),
            "python_calls": self._python.calls,
            "python_bytecodes": self._python.bytecodes,
        }

    async def _answered(self, release: EnteredRelease, asking: Sequence[Asking]) -> None:
        """Send and wait, with nothing of Python's but what is written here: whatever else it called would count."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()
        missing = len(asking)

        def on_answer() -> None:
            nonlocal missing
            missing -= 1
            if missing == 0:
                answered.set_result(None)

        # Calls that a tick sends together are answered together: one read of the gate is less work than two.
        self._redis.stand_still()
        try:
            for connection, request in asking:
                connection.send(request, on_answer)
            # At the end of its turn the loop has sent everything.
            await _turn()
        finally:
            self._redis.go_on()
        alarm = loop.call_later(_ANSWER_SECONDS_MAX, answered.cancel)
        await answered
        alarm.cancel()
        await self._quiet(release)

    async def measure_giving_back(self, release: EnteredRelease, phone: Phone, claim_id: UUID) -> Figures:
        """Give a claim back as the API does, the gate told included, and count what the engines do for it.

        Python is not counted: its part is SQLAlchemy's, whose greenlets the counters do not follow.
        """

        async def give_back() -> None:
            async with transaction(self._api) as db:
                _, changed = await claims.give_back(
                    db,
                    claim_id=claim_id,
                    account_id=phone.account,
                    only_booking_id=None,
                    now=self.clock.now(),
                    notice=timedelta(0),
                )
            await self._gate.settle(release.made.release_id, changed)
            await self._quiet(release)

        return await self._counted(give_back)

    async def _counted(self, work: Callable[[], Awaitable[None]]) -> dict[str, int]:
        # What is written of an instant is kept for its second: whether one has just begun must not count.
        for seconds in _SECONDS_AROUND:
            iso_of_ms((int(time.time()) + seconds) * 1_000)
        inside_before = await counts_inside(self._observer)
        line_before, redis_before = self._line.counts(), self._redis.counts()
        await work()
        redis, line = self._redis.counts().since(redis_before), self._line.counts().since(line_before)
        inside = (await counts_inside(self._observer)).since(inside_before)
        return {
            "redis_commands": redis.commands,
            "redis_script_commands": redis.script_commands,
            "redis_sent_bytes": redis.sent_bytes,
            "redis_received_bytes": redis.received_bytes,
            "postgres_round_trips": line.round_trips,
            "postgres_transactions": line.transactions,
            "postgres_statements": line.statements,
            "postgres_inner_statements": inside.inner_statements,
            "postgres_wal_records": inside.wal_records,
            "postgres_sent_bytes": line.sent_bytes,
            "postgres_received_bytes": line.received_bytes,
        }

    async def _quiet(self, release: EnteredRelease) -> None:
        """Wait until the gate has told Redis of everything that PostgreSQL has."""
        zeros = polls = 0
        # Seen twice: between the two, Redis has written its answer to the gate, too.
        while zeros < 2:
            zeros = 0 if self._redis.pending(release.pending_key) else zeros + 1
            polls += 1
            assert polls < _POLLS_MAX, "claims stay pending"
            if zeros == 0:
                await _turn(_POLL_SECONDS)
        for _ in range(_LAST_TURNS):
            await _turn()


def _check(asking: Sequence[Asking], word: str) -> None:
    words = {connection.heard().word for connection, _ in asking}
    assert words == {word}, f"what is counted is not what was meant: {words}"


async def _turn(seconds: float = 0.0) -> None:
    """Let the loop go on, without a step of Python's in between."""
    loop = asyncio.get_running_loop()
    turned: asyncio.Future[None] = loop.create_future()
    loop.call_later(seconds, turned.set_result, None)
    await turned


@asynccontextmanager
async def staged(engines: CountingEngines) -> AsyncGenerator[Stage]:
    """Open a worker on these engines. The loop has to be uvloop's (see `python_work`)."""
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop), "Python's own loop would be counted"
    settings = make_settings(engines.counted_dsn, engines.redis_url, _NO_WECHAT).model_copy(update=_PATIENCE)
    clock = StandingClock()
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(observed(engines.redis_socket, engines.redis_pid))
        db = await asyncpg.connect(engines.direct_dsn)
        stack.push_async_callback(db.close)
        observer = await asyncpg.connect(engines.observer_dsn)
        stack.push_async_callback(observer.close)
        api = create_engine(settings)
        stack.push_async_callback(api.dispose)
        gate = await Gate.open(settings, clock)
        stack.push_async_callback(gate.close)
        stage = Stage(settings, gate, clock, redis, engines, db, observer, api)
        stack.callback(stage.hang_up)
        yield stage
