"""The gate of one process: the way of a claim through it, and what it tells of releases and claims."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Final, NamedTuple, assert_never, cast
from uuid import UUID

import asyncpg
import structlog
from redis.exceptions import RedisError

from app.booking.gate import errors
from app.booking.gate.admission import Order
from app.booking.gate.database import line_settings
from app.booking.gate.ledger import Verdict, Winner
from app.booking.gate.link import Links, ms_of_time
from app.booking.gate.rebuild import suspend
from app.booking.gate.records import ClaimRecord, PoolCounts
from app.booking.gate.refusals import refusal_of
from app.booking.gate.retirement import retire, states_in_redis
from app.booking.gate.rooms import OUT_OF_REACH, REBUILD_RETRY_MS, Room, Rooms, rebuilding_again
from app.booking.gate.state import Release
from app.booking.gate.sweep import sweep_release
from app.core.clock import Clock
from app.core.problems import IdempotencyMismatch, NotFound, Problem, jittered_ms
from app.core.settings import Settings
from app.core.tasks import Chores

log = structlog.get_logger(__name__)

_LINKS: Final = 4
# How often one claim is judged anew when the state under it had to be rebuilt.
_JUDGED_AGAIN_LIMIT: Final = 3


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


class Gate:
    """Admits claims, answers for them, and keeps Redis and PostgreSQL in step. One for each process."""

    def __init__(self, settings: Settings, database: asyncpg.Pool, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self._database = database
        self._links = Links(settings, _LINKS)
        self._chores = Chores()
        self._under_way: dict[tuple[UUID, int], asyncio.Future[Verdict]] = {}
        self._rooms = Rooms(settings, self._links, database, self._chores, self._see_through)

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
                # In a rebuild's transaction nothing happens while Redis takes a part of the state: finding a link,
                # connecting and one command have a time-out each.
                **line_settings(silence_ms=settings.commit_timeout_ms + 3 * settings.redis_timeout_ms),
            },
        )
        return cls(settings, database, clock)

    async def close(self) -> None:
        """Finish what is between script and PostgreSQL, then close the connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.shutdown_grace_seconds):
                # What does not get done in time is settled by the sweep, or by the phone's next try.
                for room in self._rooms.entered():
                    await room.admission.drained()
                while self._under_way:
                    await asyncio.wait(self._under_way.values())
        # Cut first: on a silent line a chore that is told to end would wait for the answer to its last words.
        self._database.terminate()
        await self._chores.end()
        await self._links.close()

    async def release(self, release_id: UUID) -> Release:
        """Return how a release is set up, building its state where there is none.

        Raises `NotFound` for one that does not exist or is not published, `Rebuilding` while its state is being made.
        """
        return (await self._rooms.room(release_id)).release

    async def claim(self, release_id: UUID, order: Order, request: str) -> Decided | Pending:
        """Put a claim through: script, PostgreSQL, answer. Raises the `Problem` with which it is refused."""
        for _ in range(_JUDGED_AGAIN_LIMIT):
            room = await self._rooms.room(release_id)
            try:
                answer, verdict = await room.admission.admit(order, request)
                refusal = None if answer.code in "TWPK" else refusal_of(room.release, answer)
            except errors.NotInForce:
                self._rooms.leave(room)
                continue
            except errors.Contradiction:
                self._rooms.condemn(room, because="contradiction")
                continue
            except (RedisError, OSError):
                raise errors.GateUnreachable(retry_after_ms=jittered_ms(REBUILD_RETRY_MS)) from None
            if refusal is not None:
                raise refusal
            record = ClaimRecord.unpack(UUID(bytes=order.claim_id), answer.detail)
            if verdict is None:
                return Decided(room.release, record, repeated=True)
            decided = await self._told(room, record, verdict, repeated=answer.code == "P")
            if decided is not None:
                return decided
        raise rebuilding_again()

    def _see_through(self, room: Room, winner: Winner) -> asyncio.Future[Verdict]:
        """Take an admitted claim to PostgreSQL and the verdict back to Redis, whoever still waits for it.

        A claim that is on its way already is not sent twice.
        """
        key = winner.record.claim_id, room.release.epoch
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = self._chores.start(self._decide(room, winner))
            task.add_done_callback(lambda _: self._under_way.pop(key))
        return task

    async def _decide(self, room: Room, winner: Winner) -> Verdict:
        verdict = await room.ledger.commit(winner)
        await self._after(room, winner.record, verdict)
        return verdict

    async def _told(
        self, room: Room, record: ClaimRecord, verdict_later: asyncio.Future[Verdict], *, repeated: bool
    ) -> Decided | Pending | None:
        """Wait for the verdict on an admitted claim. None: the state under it is over, and it is to be judged anew."""
        try:
            async with asyncio.timeout(self.settings.commit_wait_ms / 1000):
                # Shielded: a phone that hangs up, or has waited long enough, cancels nothing.
                verdict = await asyncio.shield(verdict_later)
        except TimeoutError:
            return Pending(jittered_ms(REBUILD_RETRY_MS))
        match verdict:
            case Verdict.COMMITTED:
                return Decided(room.release, record, repeated=repeated)
            case Verdict.CLASH:
                raise errors.TimeClash
            case Verdict.VOID:
                raise errors.ClaimVoid
            case Verdict.ELSEWHERE:
                raise IdempotencyMismatch
            case Verdict.STALE | Verdict.CONTRADICTION:
                return None
            case Verdict.UNKNOWN:
                return Pending(jittered_ms(REBUILD_RETRY_MS))
            case _:
                assert_never(verdict)

    async def _after(self, room: Room, record: ClaimRecord, verdict: Verdict) -> None:
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
                    self._chores.start(self.sweep(room.release.release_id))
            case Verdict.STALE | Verdict.CONTRADICTION:
                # Stale too: whoever raised the epoch may have died before putting the new state in force.
                self._rooms.condemn(room, because=verdict.name.lower())
            case Verdict.UNKNOWN:
                # The sweep settles it.
                pass
            case _:
                assert_never(verdict)

    async def known_claim(self, release_id: UUID, claim_id: UUID, account: bytes) -> Decided | Pending:
        """Answer "did I get it?" from Redis alone. Raises `NotFound` where the gate knows no such claim of theirs."""
        room = await self._rooms.room(release_id)
        keys = room.release.keys
        try:
            async with self._links.lend() as link:
                if link.identity != room.release.identity:
                    await link.drop()
                    self._rooms.leave(room)
                    raise rebuilding_again()
                packed, deadline, epoch = await link.commands(
                    [
                        ["HGET", keys.claims, claim_id.bytes],
                        ["ZSCORE", keys.pending, claim_id.bytes],
                        ["HGET", keys.meta, "epoch"],
                    ]
                )
        except (RedisError, OSError):
            raise errors.GateUnreachable(retry_after_ms=jittered_ms(REBUILD_RETRY_MS)) from None
        if epoch is None or int(cast("bytes", epoch)) != room.release.epoch:
            self._rooms.leave(room)
            raise rebuilding_again()
        if packed is None:
            raise NotFound
        record = ClaimRecord.unpack(claim_id, cast("bytes", packed))
        if record.account != account:
            raise NotFound
        return (
            Decided(room.release, record, repeated=True) if deadline is None else Pending(jittered_ms(REBUILD_RETRY_MS))
        )

    async def availability(self, release_id: UUID) -> Availability:
        """Read what is left, from Redis. Raises like `release`, and `GateUnreachable`."""
        room = await self._rooms.room(release_id)
        keys = room.release.keys
        try:
            async with self._links.lend() as link:
                epoch, version, in_force, pools, time = await link.commands(
                    [
                        ["HGET", keys.meta, "epoch"],
                        ["HGET", keys.meta, "version"],
                        ["HEXISTS", keys.meta, "identity"],
                        ["HGETALL", keys.pools],
                        ["TIME"],
                    ]
                )
                identity = link.identity
        except (RedisError, OSError):
            raise errors.GateUnreachable(retry_after_ms=jittered_ms(REBUILD_RETRY_MS)) from None
        same_epoch = epoch is not None and int(cast("bytes", epoch)) == room.release.epoch
        if not (same_epoch and in_force and identity == room.release.identity):
            self._rooms.leave(room)
            raise rebuilding_again()
        packed = cast("dict[bytes, bytes]", pools)
        if len(packed) < len(room.release.pool_ids):
            self._rooms.condemn(room, because="contradiction")
            raise rebuilding_again()
        return Availability(
            room.release,
            ms_of_time(time),
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

    async def suspend(self, release_id: UUID) -> None:
        """Let nobody be judged by a release's state until it is made anew (see `rebuild.suspend`).

        Raises `GateUnreachable`.
        """
        try:
            async with self._links.lend() as link:
                await suspend(link, release_id)
        except (RedisError, OSError):
            raise errors.GateUnreachable(retry_after_ms=jittered_ms(REBUILD_RETRY_MS)) from None

    async def rebuild(self, release_id: UUID) -> None:
        """Rebuild a release's state, whatever stands there now. Raises `NotFound`, and the drivers' errors."""
        await self._rooms.make_anew(release_id)

    async def settle(self, release_id: UUID, claim_ids: Sequence[UUID]) -> None:
        """Tell Redis what PostgreSQL decided about these claims. What fails is left to the sweep."""
        try:
            room = await self._rooms.room(release_id)
            await room.settlement.settle(claim_ids)
        except (Problem, *OUT_OF_REACH) as error:
            log.warning("gate_settling_left_to_sweep", release=str(release_id), error=type(error).__name__)

    async def sweep(self, release_id: UUID) -> None:
        """Finish what a crash, or a refusal, left half done. Raises like `release`, and the drivers' errors."""
        room = await self._rooms.room(release_id)
        try:
            await sweep_release(room.release, self._links, self._database, room.settlement, self.settings)
        except errors.GateError as error:
            self._rooms.condemn(room, because=error.reason)

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
            self._rooms.leave(room)
