"""The background worker: sweeps every release that is in use, retires those that are over, deletes what has expired.

Any number of workers may run. Sweeping is safe to repeat anywhere; the deleting is done by one at a time in the whole
fleet. While PostgreSQL or Redis is away the worker waits for them, and says so once, not at every try. Whether they
were ever there is for the command to find out before (`app/cli/background.py`).
"""

import asyncio
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.accounts.jobs import BATCH_ROWS, forget_expired_invitations, forget_expired_tokens
from app.booking.gate.gate import Gate
from app.booking.releases.queries import RELEASES_PAGE, releases_in_use, releases_over
from app.core.clock import Clock
from app.core.db import create_engine, transaction
from app.core.idempotency import FORGET_BATCH_LIMIT, forget_expired
from app.core.metrics import LAST_ROUND
from app.core.outages import ENGINE_ERRORS, Engine, engine_of, facts_of, is_unreachable
from app.core.problems import Problem
from app.core.redis import connect_redis
from app.core.settings import Settings

log = structlog.stdlib.get_logger(__name__)

# So long the worker waits at most between two tries while something is away: what a restarted server waits for us.
BACKOFF_SECONDS_MAX: Final = 10.0
# Batches of one kind deleted in one round; a longer backlog is for the next round.
BATCHES_MAX: Final = 100
# Says which round of deleting is running somewhere in the fleet. The number is arbitrary and ours.
HOUSEKEEPING_LOCK_KEY: Final = 0x434C_4F43_4B44
_REDIS_CONNECTIONS: Final = 2
# When a worker last ended a round, in ms since 1970: for whoever looks whether there is one.
LAST_ROUND_KEY: Final = "clocktower:worker:last-round"


class _Forgetting(NamedTuple):
    """One kind of record that expires: how a batch of it is deleted, and how many a full batch has."""

    name: str
    delete: Callable[[AsyncSession, datetime], Awaitable[int]]
    full_batch: int


class _Troubles:
    """Remembers what is wrong, so that each trouble is logged when it begins and when it is over."""

    def __init__(self) -> None:
        self._standing: set[str] = set()

    def begin(self, what: str, error: BaseException) -> None:
        if what not in self._standing:
            self._standing.add(what)
            log.warning("worker_trouble", what=what, **facts_of(error))

    def over(self, what: str) -> None:
        if what in self._standing:
            self._standing.remove(what)
            log.info("worker_trouble_over", what=what)

    def forget_absent(self, present: set[str]) -> None:
        """Forget troubles with releases that are not swept any more."""
        self._standing &= present


class Worker:
    """One background worker. `work` until told to stop."""

    def __init__(self, settings: Settings, engine: AsyncEngine, redis: Redis, clock: Clock, gate: Gate) -> None:
        self._settings = settings
        self._engine = engine
        self._redis = redis
        self._clock = clock
        self._gate = gate
        self._troubles = _Troubles()
        self._housekeeping_due_at = 0.0
        self._forgettings: Final = (
            _Forgetting("refresh_tokens", forget_expired_tokens, BATCH_ROWS),
            _Forgetting("invitations", forget_expired_invitations, BATCH_ROWS),
            _Forgetting("idempotency_records", self._forget_idempotency_records, FORGET_BATCH_LIMIT),
        )

    async def work(self, stop: asyncio.Event) -> None:
        """Sweep and delete until `stop` is set; the step that runs then is finished first."""
        failed_in_a_row = 0
        while not stop.is_set():
            failed_in_a_row = 0 if await self.once(stop) else failed_in_a_row + 1
            await _until(stop, self._pause_seconds(failed_in_a_row))

    async def once(self, stop: asyncio.Event) -> bool:
        """Do one round, and tell whether it went well."""
        try:
            # The round trip tells whether Redis is there, and its time is what everything is judged by.
            await self._clock.calibrate(self._redis.time)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - **kwargs untyped
            well = await self._sweep(stop)
            if asyncio.get_running_loop().time() >= self._housekeeping_due_at and not stop.is_set():
                await self._keep_house(stop)
            LAST_ROUND.set(self._clock.now_ms() / 1_000)
            await self._redis.set(LAST_ROUND_KEY, self._clock.now_ms())  # pyright: ignore[reportUnknownMemberType] - **kwargs untyped
        except ENGINE_ERRORS as error:
            self._troubles.begin(engine_of(error), error)
            return False
        for engine in Engine:
            self._troubles.over(engine)
        return well

    async def _sweep(self, stop: asyncio.Event) -> bool:
        """Sweep every release in use. One that cannot be swept does not keep the others from it."""
        well = True
        seen: set[str] = set(Engine)
        page: list[UUID] | None = None
        while page is None or len(page) == RELEASES_PAGE:
            after = page[-1] if page else None
            async with self._engine.connect() as connection:
                page = await releases_in_use(connection, now=self._clock.now(), after=after)
            for release_id in page:
                if stop.is_set():
                    return well
                seen.add(str(release_id))
                well &= await self._tend(release_id, self._gate.sweep)
        self._troubles.forget_absent(seen)
        return well

    async def _retire(self, stop: asyncio.Event) -> None:
        """Take out of Redis the state of every release that is over."""
        async with aclosing(self._gate.states()) as states:
            async for release_ids in states:
                async with self._engine.connect() as connection:
                    over = await releases_over(connection, release_ids, now=self._clock.now())
                for release_id in over:
                    if stop.is_set():
                        return
                    await self._tend(release_id, self._gate.retire)

    async def _tend(self, release_id: UUID, work: Callable[[UUID], Awaitable[None]]) -> bool:
        """Do something with one release, and tell whether it went well."""
        try:
            await work(release_id)
        except Problem as problem:
            # Its state is being rebuilt, or cannot be: the gate says which.
            self._troubles.begin(str(release_id), problem)
            return False
        except Exception as error:
            # Without an engine no release can be swept. Whatever else goes wrong with one is that release's own
            # trouble: a defect that it meets must not leave the others unswept.
            if is_unreachable(error):
                raise
            self._troubles.begin(str(release_id), error)
            return False
        self._troubles.over(str(release_id))
        return True

    async def _keep_house(self, stop: asyncio.Event) -> None:
        for forgetting in self._forgettings:
            deleted = 0
            for _ in range(BATCHES_MAX):
                if stop.is_set():
                    return
                batch = await self._forget_batch(forgetting)
                deleted += batch
                if batch < forgetting.full_batch:
                    break
            if deleted:
                log.info("worker_forgot", what=forgetting.name, rows=deleted)
        await self._retire(stop)
        interval_seconds = self._settings.housekeeping_interval_seconds
        self._housekeeping_due_at = asyncio.get_running_loop().time() + interval_seconds

    async def _forget_batch(self, forgetting: _Forgetting) -> int:
        async with transaction(self._engine) as db:
            lock = text("SELECT pg_try_advisory_xact_lock(:key)")
            if not await db.scalar(lock, {"key": HOUSEKEEPING_LOCK_KEY}):
                return 0
            return await forgetting.delete(db, self._clock.now())

    async def _forget_idempotency_records(self, db: AsyncSession, now: datetime) -> int:
        return await forget_expired(db, now=now, hours=self._settings.idempotency_hours)

    def _pause_seconds(self, failed_in_a_row: int) -> float:
        interval_seconds = self._settings.sweep_interval_ms / 1000
        if not failed_in_a_row:
            return interval_seconds
        longer_seconds = max(interval_seconds, min(interval_seconds * 2.0**failed_in_a_row, BACKOFF_SECONDS_MAX))
        # Spread, so that a fleet does not fall on a server that has just come back.
        return longer_seconds * random.uniform(0.75, 1.0)  # noqa: S311 - spreads load, guards nothing


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncGenerator[Worker]:
    """Open a worker with connections of its own; none is made before it is needed."""
    async with AsyncExitStack() as stack:
        engine = create_engine(settings)
        stack.push_async_callback(engine.dispose)
        redis = connect_redis(settings, connections=_REDIS_CONNECTIONS)
        stack.push_async_callback(redis.aclose)
        clock = Clock()
        gate = await Gate.open(settings, clock)
        stack.push_async_callback(gate.close)
        yield Worker(settings, engine, redis, clock, gate)


async def run_worker(settings: Settings, stop: asyncio.Event, *, announce_fd: int | None = None) -> None:
    """Work until `stop` is set. `announce_fd` gets a line once the worker works."""
    async with open_worker(settings) as worker:
        if announce_fd is not None:
            with os.fdopen(announce_fd, "w") as announcement:
                announcement.write("ready\n")
        await worker.work(stop)


async def _until(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
