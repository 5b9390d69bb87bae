"""The gate of one process: every release that this worker has met, and the way of a claim through it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, Final, NamedTuple, TypeVar, assert_never, cast
from uuid import UUID

import asyncpg
import structlog
from redis.exceptions import RedisError

from app.booking.gate import errors
from app.booking.gate.admission import Admission, Order
from app.booking.gate.complaints import Complaints
from app.booking.gate.ledger import Ledger, Verdict, Winner
from app.booking.gate.link import Links
from app.booking.gate.rebuild import Because, read_release, rebuild
from app.booking.gate.records import ClaimRecord, PoolCounts
from app.booking.gate.refusals import refusal_of
from app.booking.gate.retirement import retire, states_in_redis
from app.booking.gate.settlement import Settlement
from app.booking.gate.state import Release
from app.booking.gate.sweep import sweep_release
from app.core.clock import Clock
from app.core.problems import IdempotencyMismatch, NotFound, Problem, jittered_ms
from app.core.settings import Settings

log = structlog.get_logger(__name__)
# What can be the matter with the engines, or with a release's state. TimeoutError is an OSError.
_OUT_OF_REACH: Final = (RedisError, OSError, errors.GateError, asyncpg.PostgresError, asyncpg.InterfaceError)
_T = TypeVar("_T")

_LINKS: Final = 4
_REBUILD_RETRY_MS: Final = 500
# How long a request waits for the state of a release to be found or made; a small one takes milliseconds.
_ENTER_WAIT_SECONDS: Final = 2.0
# How often one claim is judged anew when the state under it had to be rebuilt.
_JUDGED_AGAIN_LIMIT: Final = 3
# Releases whose state this worker looks for, or makes, at one time: guessed ids must not take every connection from the
# commits.
_ENTERING_LIMIT: Final = 2
# Releases that wait for that; whoever asks for one more is told 503.
_ENTERING_QUEUE_LIMIT: Final = 100
# For how long a release that does not exist is remembered as such, so that guessing ids costs PostgreSQL nothing.
_ABSENT_SECONDS: Final = 1.0
_ABSENT_LIMIT: Final = 10_000


class Decided(NamedTuple):
    """The claim is in PostgreSQL. `repeated`: it was before this request."""

    release: Release
    record: ClaimRecord
    repeated: bool


class Pending(NamedTuple):
    """The claim was admitted; whether PostgreSQL has it is not known yet."""

    retry_after_ms: int


class PoolView(NamedTuple):
    """The counts of one pool as they were at one instant."""

    pool_id: UUID
    counts: PoolCounts


class Availability(NamedTuple):
    """What is left of a release, as it was at `as_of_ms`. `version` grows with every change within an epoch."""

    release: Release
    as_of_ms: int
    version: int
    pools: tuple[PoolView, ...]


class _Room:
    """A release in force: its admission, its ledger, its settlement."""

    def __init__(self, release: Release, links: Links, database: asyncpg.Pool, settings: Settings) -> None:
        self.release = release
        self.admission = Admission(release, links, settings)
        self.ledger = Ledger(release, database, settings)
        self.settlement = Settlement(release, links, database, timeout_seconds=settings.commit_timeout_ms / 1000)


class Gate:
    """Admits claims, answers for them, and keeps Redis and PostgreSQL in step. One for each process."""

    def __init__(self, settings: Settings, database: asyncpg.Pool, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self._database = database
        self._links = Links(settings, _LINKS)
        self._rooms: dict[UUID, _Room] = {}
        self._entering: dict[UUID, asyncio.Task[_Room]] = {}
        self._entrance = asyncio.Semaphore(_ENTERING_LIMIT)
        self._absent: dict[UUID, float] = {}
        self._condemned: dict[UUID, int] = {}
        self._complaints = Complaints()
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, settings: Settings, clock: Clock) -> "Gate":
        """Open a gate with its own connections to PostgreSQL; none is made before it is needed."""
        database = await asyncpg.create_pool(
            settings.database_url.get_secret_value(),
            min_size=0,
            max_size=settings.gate_connection_limit,
            server_settings={
                "application_name": "clocktower-gate",
                # A yes is durable before it is spoken, whatever the server's default says.
                "synchronous_commit": "on",
                # Shorter than our own time-out, so that the server's "certainly not" comes before our "who knows".
                "lock_timeout": str(settings.commit_timeout_ms * 4 // 5),
                "jit": "off",
            },
        )
        return cls(settings, database, clock)

    async def close(self) -> None:
        """Finish what is between script and PostgreSQL, then close the connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.shutdown_grace_seconds):
                # What does not get done in time is settled by the sweep, or by the phone's next try.
                for room in tuple(self._rooms.values()):
                    await room.ledger.drained()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._database.terminate()
        await self._links.close()

    async def release(self, release_id: UUID) -> Release:
        """Return how a release is set up, building its state where there is none.

        Raises `NotFound` for one that does not exist or is not published, `Rebuilding` while its state is being made.
        """
        return (await self._room(release_id)).release

    async def claim(self, release_id: UUID, order: Order, request: str) -> Decided | Pending:
        """Put a claim through: script, PostgreSQL, answer. Raises the `Problem` with which it is refused."""
        for _ in range(_JUDGED_AGAIN_LIMIT):
            room = await self._room(release_id)
            try:
                answer = await room.admission.admit(order)
                refusal = None if answer.code in "TWPK" else refusal_of(room.release, answer)
            except errors.NotInForce:
                self._leave(room)
                continue
            except errors.Contradiction:
                self._condemn(room, because="contradiction")
                continue
            except (RedisError, OSError):
                raise errors.GateUnreachable(retry_after_ms=jittered_ms(_REBUILD_RETRY_MS)) from None
            if refusal is not None:
                raise refusal
            record = ClaimRecord.unpack(UUID(bytes=order.claim_id), answer.detail)
            if answer.code == "K":
                return Decided(room.release, record, repeated=True)
            decided = await self._commit(room, record, request, repeated=answer.code == "P")
            if decided is not None:
                return decided
        raise self._rebuilding()

    async def _commit(
        self, room: _Room, record: ClaimRecord, request: str, *, repeated: bool
    ) -> Decided | Pending | None:
        """Make an admitted claim durable. None: the state under it is over, and it is to be judged anew."""
        verdict_later = room.ledger.commit(Winner(record, request))
        try:
            async with asyncio.timeout(self.settings.commit_wait_ms / 1000):
                # Shielded: a phone that hangs up, or has waited long enough, cancels nothing.
                verdict = await asyncio.shield(verdict_later)
        except TimeoutError:
            verdict_later.add_done_callback(
                lambda done: None if done.cancelled() else self._spawn(self._after(room, record, done.result()))
            )
            return Pending(jittered_ms(_REBUILD_RETRY_MS))
        match verdict:
            case Verdict.COMMITTED:
                room.admission.confirm(record.claim_id.bytes)
                return Decided(room.release, record, repeated=repeated)
            case Verdict.CLASH:
                await self._after(room, record, verdict)
                raise errors.TimeClash
            case Verdict.VOID:
                await self._after(room, record, verdict)
                raise errors.ClaimVoid
            case Verdict.ELSEWHERE:
                await self._after(room, record, verdict)
                raise IdempotencyMismatch
            case Verdict.STALE | Verdict.CONTRADICTION:
                await self._after(room, record, verdict)
                return None
            case Verdict.UNKNOWN:
                return Pending(jittered_ms(_REBUILD_RETRY_MS))
            case _:
                assert_never(verdict)

    async def _after(self, room: _Room, record: ClaimRecord, verdict: Verdict) -> None:
        """Bring Redis in line with a verdict."""
        match verdict:
            case Verdict.COMMITTED:
                room.admission.confirm(record.claim_id.bytes)
            case Verdict.CLASH | Verdict.VOID | Verdict.ELSEWHERE:
                # Its tombstone, or its row in another release, is committed: nobody can book under this id any more.
                try:
                    await room.settlement.release_claims([record.claim_id.bytes])
                except (errors.GateError, RedisError, OSError) as error:
                    log.warning("gate_release_left_to_sweep", error=type(error).__name__)
                else:
                    self._spawn(self.sweep(room.release.release_id))
            case Verdict.STALE | Verdict.CONTRADICTION:
                # Stale too: whoever raised the epoch may have died before putting the new state in force.
                self._condemn(room, because=verdict.name.lower())
            case Verdict.UNKNOWN:
                # The sweep settles it.
                pass
            case _:
                assert_never(verdict)

    async def known_claim(self, release_id: UUID, claim_id: UUID, account: bytes) -> Decided | Pending:
        """Answer "did I get it?" from Redis alone. Raises `NotFound` where the gate knows no such claim of theirs."""
        room = await self._room(release_id)
        keys = room.release.keys
        try:
            async with self._links.lend() as link:
                if link.identity != room.release.identity:
                    await link.drop()
                    self._leave(room)
                    raise self._rebuilding()
                packed, deadline, epoch = await link.commands(
                    [
                        ["HGET", keys.claims, claim_id.bytes],
                        ["ZSCORE", keys.pending, claim_id.bytes],
                        ["HGET", keys.meta, "epoch"],
                    ]
                )
        except (RedisError, OSError):
            raise errors.GateUnreachable(retry_after_ms=jittered_ms(_REBUILD_RETRY_MS)) from None
        if epoch is None or int(cast("bytes", epoch)) != room.release.epoch:
            self._leave(room)
            raise self._rebuilding()
        if packed is None:
            raise NotFound
        record = ClaimRecord.unpack(claim_id, cast("bytes", packed))
        if record.account != account:
            raise NotFound
        return Decided(room.release, record, repeated=True) if deadline is None else Pending(_REBUILD_RETRY_MS)

    async def availability(self, release_id: UUID) -> Availability:
        """Read what is left, from Redis. Raises like `release`, and `GateUnreachable`."""
        room = await self._room(release_id)
        keys = room.release.keys
        try:
            async with self._links.lend() as link:
                epoch, version, pools, time = await link.commands(
                    [
                        ["HGET", keys.meta, "epoch"],
                        ["HGET", keys.meta, "version"],
                        ["HGETALL", keys.pools],
                        ["TIME"],
                    ]
                )
                identity = link.identity
        except (RedisError, OSError):
            raise errors.GateUnreachable(retry_after_ms=jittered_ms(_REBUILD_RETRY_MS)) from None
        if epoch is None or int(cast("bytes", epoch)) != room.release.epoch or identity != room.release.identity:
            self._leave(room)
            raise self._rebuilding()
        packed = cast("dict[bytes, bytes]", pools)
        if len(packed) < len(room.release.pool_ids):
            self._condemn(room, because="contradiction")
            raise self._rebuilding()
        seconds, microseconds = cast("list[bytes]", time)
        return Availability(
            room.release,
            int(seconds) * 1000 + int(microseconds) // 1000,
            int(cast("bytes", version)),
            tuple(
                PoolView(pool_id, PoolCounts.unpack(packed[str(ordinal).encode()]))
                for ordinal, pool_id in enumerate(room.release.pool_ids)
            ),
        )

    async def counts(self, release_id: UUID) -> dict[str, int] | None:
        """Return the gate's own totals for an audit, or None where it has no state in force."""
        try:
            seen = await self.availability(release_id)
        except Problem:
            return None
        counts = [view.counts for view in seen.pools]
        free, pending = sum(c.free for c in counts), sum(c.pending for c in counts)
        return {
            "epoch": seen.release.epoch,
            "free": free,
            "held": sum(c.capacity for c in counts) - free - pending,
            "pending": pending,
            "waiting": sum(c.waiting for c in counts),
        }

    async def rebuild(self, release_id: UUID) -> None:
        """Rebuild a release's state, whatever stands there now. Raises `NotFound`, and the drivers' errors."""
        room = self._rooms.get(release_id)
        seen = room.release.epoch if room else None
        release = await self._rebuild(release_id, Because(seen, insist=True))
        self._absent.pop(release_id, None)
        self._rooms[release_id] = _Room(release, self._links, self._database, self.settings)
        log.info("gate_rebuilt", release=str(release_id), epoch=release.epoch)

    async def settle(self, release_id: UUID, claim_ids: Sequence[UUID]) -> None:
        """Tell Redis what PostgreSQL decided about these claims. What fails is left to the sweep."""
        try:
            room = await self._room(release_id)
            await room.settlement.settle(claim_ids)
        except (Problem, *_OUT_OF_REACH) as error:
            log.warning("gate_settling_left_to_sweep", release=str(release_id), error=type(error).__name__)

    async def sweep(self, release_id: UUID) -> None:
        """Finish what a crash, or a refusal, left half done. Raises like `release`, and the drivers' errors."""
        room = await self._room(release_id)
        try:
            await sweep_release(room.release, self._links, self._database, room.settlement, self.settings)
        except errors.GateError as error:
            self._condemn(room, because=error.reason)

    def states(self) -> AsyncGenerator[set[UUID]]:
        """Yield every release that has a state in Redis, some at a time (see `states_in_redis`)."""
        return states_in_redis(self._links)

    async def retire(self, release_id: UUID) -> None:
        """Remove the state of a release that is over, unless it was needed of late. Raises like `sweep`."""
        await self.sweep(release_id)
        room = self._rooms.get(release_id)
        # Where the sweep condemned the state, there is nothing to remove before the next round.
        if room is not None and await retire(room.release, self._links):
            log.info("gate_retired", release=str(release_id), epoch=room.release.epoch)
            self._leave(room)

    async def _room(self, release_id: UUID) -> _Room:
        room = self._rooms.get(release_id)
        if room is not None:
            return room
        loop = asyncio.get_running_loop()
        if self._absent.get(release_id, 0.0) > loop.time():
            raise NotFound
        entering = self._entering.get(release_id)
        if entering is None:
            if len(self._entering) >= _ENTERING_QUEUE_LIMIT:
                raise self._rebuilding()
            entering = self._spawn(self._enter(release_id))
            self._entering[release_id] = entering
            entering.add_done_callback(lambda _: self._entering.pop(release_id, None))
        try:
            async with asyncio.timeout(_ENTER_WAIT_SECONDS):
                # Shielded: the one who asked first may hang up; the others still want the room.
                return await asyncio.shield(entering)
        except NotFound:
            if len(self._absent) >= _ABSENT_LIMIT:
                self._absent.clear()
            self._absent[release_id] = loop.time() + _ABSENT_SECONDS
            raise
        except (errors.Rebuilding, TimeoutError):
            # A new one for each of those who wait: they are to come back at different moments.
            raise self._rebuilding() from None

    async def _enter(self, release_id: UUID) -> _Room:
        """Find the state in force, or make it. Where it was condemned, only a later epoch will do.

        Raises `NotFound`, and `Rebuilding` for whatever is the matter, which it has logged.
        """
        condemned = self._condemned.get(release_id)
        release = None
        try:
            async with self._links.lend() as link:
                release = await read_release(link, release_id)
            if release is None or (condemned is not None and release.epoch <= condemned):
                async with self._entrance:
                    release = await self._rebuild(release_id, Because(condemned))
                log.info("gate_rebuilt", release=str(release_id), epoch=release.epoch)
        except _OUT_OF_REACH as error:
            # Here, and not for each of those who wait for it; and in an outage they come again all the time.
            if self._complaints.is_new((release_id, type(error)), asyncio.get_running_loop().time()):
                log.warning("gate_cannot_enter", release=str(release_id), error=type(error).__name__)
            raise self._rebuilding() from error
        self._condemned.pop(release_id, None)
        room = _Room(release, self._links, self._database, self.settings)
        self._rooms[release_id] = room
        return room

    async def _rebuild(self, release_id: UUID, because: Because) -> Release:
        timeout_seconds = self.settings.rebuild_timeout_seconds
        return await rebuild(self._database, self._links, release_id, because, timeout_seconds=timeout_seconds)

    def _leave(self, room: _Room) -> None:
        if self._rooms.get(room.release.release_id) is room:
            del self._rooms[room.release.release_id]

    def _condemn(self, room: _Room, *, because: str) -> None:
        """Never use this epoch again: it is over in PostgreSQL, or Redis and PostgreSQL contradict each other in it."""
        release = room.release
        if self._rooms.get(release.release_id) is room:
            log.error("gate_condemned", release=str(release.release_id), epoch=release.epoch, because=because)
            self._condemned[release.release_id] = release.epoch
            self._leave(room)

    def _rebuilding(self) -> errors.Rebuilding:
        return errors.Rebuilding(retry_after_ms=jittered_ms(_REBUILD_RETRY_MS))

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Problem):
            # Whatever it was to do is found again by the sweep.
            log.warning("gate_task_failed", error=type(error).__name__)
