"""The gate of one process: the way of a claim through it, and what it tells of releases and claims."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, assert_never, cast
from uuid import UUID

import asyncpg
import structlog
from redis.exceptions import RedisError

from app.booking.gate import errors
from app.booking.gate.admission import HasHungUp, Judged, Order
from app.booking.gate.database import leave_as_it_is, line_settings
from app.booking.gate.differences import Comparison, compare
from app.booking.gate.keys import BALLAST_FIELD
from app.booking.gate.ledger import Verdict
from app.booking.gate.link import ms_of_time
from app.booking.gate.nodes import Nodes
from app.booking.gate.outcomes import Availability, Caller, Decided, Outcome, Pending, PoolView
from app.booking.gate.rebuild import suspend
from app.booking.gate.records import ClaimRecord, PoolCounts
from app.booking.gate.refusals import SOLD_OUT, SOLD_OUT_LETTER, refusal_of
from app.booking.gate.retirement import retire, states_in_redis
from app.booking.gate.rooms import OUT_OF_REACH, REBUILD_RETRY_MS, Room, Rooms, rebuilding_again
from app.booking.gate.state import Release
from app.booking.gate.sweep import sweep_release
from app.booking.gate.under_way import UnderWay
from app.core.clock import Clock
from app.core.ids import id_of
from app.core.problems import IdempotencyMismatch, InternalError, NotFound, Problem, jittered_ms
from app.core.settings import Settings
from app.core.tasks import Chores

log = structlog.get_logger(__name__)

# To each server that holds states. Whoever reads whole states keeps one for as long as that takes.
LINKS: Final = 4
# How often one claim is judged anew when the state under it had to be rebuilt.
_JUDGED_AGAIN_LIMIT: Final = 3
# With these the script has refused a claim, and nothing is left to do but to say so.
_FINAL_LETTERS: Final = frozenset("GFUNZLXM")


class Gate:
    """Admits claims, answers for them, and keeps Redis and PostgreSQL in step. One for each process."""

    def __init__(self, settings: Settings, database: asyncpg.Pool, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self._database = database
        self.background = Chores()
        self._nodes = Nodes(settings, LINKS, self.background)
        self._under_way = UnderWay(self.background, lambda: self._rooms, self.sweep)
        # Claims that the script has judged and whose phones wait for more than its word.
        self._going_on: set[asyncio.Task[Outcome]] = set()
        self._rooms = Rooms(settings, self._nodes, database, self.background, self._under_way.see_through)
        # The releases that this worker knows, by the bytes of their ids; to be read without asking anybody.
        self.entered = self._rooms.entered

    @classmethod
    async def open(cls, settings: Settings, clock: Clock) -> "Gate":
        """Open a gate with its own connections to PostgreSQL; none is made before it is needed."""
        database = await asyncpg.create_pool(
            settings.database_url.get_secret_value(),
            min_size=0,
            max_size=settings.gate_connection_limit,
            reset=leave_as_it_is,
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
        gate = cls(settings, database, clock)
        gate.background.start(gate._rooms.watch())
        return gate

    async def close(self) -> None:
        """Finish what is between script and PostgreSQL, then close the connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.shutdown_grace_seconds):
                # What does not get done in time is settled by the sweep, or by the phone's next try.
                for room in tuple(self.entered.values()):
                    await room.admission.drained()
                while under_way := {*self._under_way.verdicts, *self._going_on}:
                    await asyncio.wait(under_way)
        self._rooms.publish()
        self._under_way.give_up()
        # Cut first: on a silent line a chore that is told to end would wait for the answer to its last words.
        self._database.terminate()
        await self.background.end()
        await self._nodes.close()

    async def release(self, release_id: UUID) -> Release:
        """Return how a release is set up, building its state where there is none.

        Raises `NotFound` for one that does not exist or is not published, `Rebuilding` while its state is being made.
        """
        return (await self._rooms.room(release_id)).release

    def put(self, room: Room, order: Order, caller: Caller) -> None:
        """Put a claim through: script, PostgreSQL, answer.

        Until the script has judged it, a claim ends with its caller's connection; after that, with nothing that happens
        to the request.

        A "no" is told from the very call in which the script says it: nobody's task has to be woken for it. Raises
        `Busy`, and tells nothing, where the queue is full.
        """
        room.admission.put(order, partial(self._judged, room, order, caller), caller.has_hung_up)

    def _judged(self, room: Room, order: Order, caller: Caller, judged: Judged | Exception) -> None:
        at_once: Outcome | None = None
        if type(judged) is Judged:
            if judged.answer.code == SOLD_OUT_LETTER:
                # What thousands hear at an opening: without a turn more than it takes.
                caller.tell(SOLD_OUT)
                return
            try:
                if judged.verdict is not None:
                    self._tell_when_decided(room, order, caller, judged)
                    return
                at_once = _final(room, judged)
            except Exception:  # noqa: BLE001 - met again in `_go_on`, where there is time to say so
                at_once = None
        if at_once is None:
            self._take_on(room, order, caller, judged)
        else:
            caller.tell(at_once)

    def _tell_when_decided(self, room: Room, order: Order, caller: Caller, judged: Judged) -> None:
        """Tell what PostgreSQL says of an admitted claim, or that it is still pending when the wait is over.

        From callbacks, for the same reason: at an opening, everybody who gets a place gets it within a second.
        """
        verdict, record = judged.verdict, judged.record
        assert verdict is not None  # noqa: S101 - it was admitted
        assert record is not None  # noqa: S101 - as above

        is_told = False

        def came(verdict: asyncio.Future[Verdict]) -> None:
            # A phone that has waited long enough has cancelled nothing, but it has had its answer.
            if is_told:
                return
            timer.cancel()
            if not verdict.cancelled() and verdict.result() is Verdict.COMMITTED:
                caller.tell(Decided(room.release, record, repeated=judged.answer.code == "P"))
            else:
                self._take_on(room, order, caller, judged)

        def waited() -> None:
            nonlocal is_told
            is_told = True
            caller.tell(Pending(jittered_ms(REBUILD_RETRY_MS)))

        timer = asyncio.get_running_loop().call_later(self.settings.commit_wait_ms / 1000, waited)
        verdict.add_done_callback(came)

    def _take_on(self, room: Room, order: Order, caller: Caller, judged: Judged | Exception) -> None:
        def came(task: asyncio.Task[Outcome]) -> None:
            self._going_on.discard(task)
            # Ended with the worker, it leaves its phone with a word, too.
            caller.tell(_unreachable() if task.cancelled() else task.result())

        task = self.background.start(self._go_on(room, order, caller, judged))
        self._going_on.add(task)
        task.add_done_callback(came)

    async def _go_on(self, room: Room, order: Order, caller: Caller, judged: Judged | Exception) -> Outcome:
        """Take a claim on from its first judgement to an outcome."""
        try:
            outcome = await self._heard(room, judged)
            return outcome or await self.claim(room.release.release_id, order, caller.has_hung_up)
        except Problem as problem:
            return problem
        except Exception:
            log.exception("gate_failed", claim=str(id_of(order.claim_id)))
            return InternalError()

    async def claim(self, release_id: UUID, order: Order, has_hung_up: HasHungUp) -> Outcome:
        """Do what `put` does for somebody who waits here, and find the release's state, or make it, before.

        Raises like `release`, and `Busy`.
        """
        for _ in range(_JUDGED_AGAIN_LIMIT):
            room = await self._rooms.room(release_id)
            outcome = await self._heard(room, await room.admission.admit(order, has_hung_up))
            if outcome is not None:
                return outcome
        return rebuilding_again()

    async def _heard(self, room: Room, judged: Judged | Exception) -> Outcome | None:
        """Return what comes of a judgement. None: the state under it is over, and the claim is to be judged anew."""
        try:
            if isinstance(judged, Exception):
                raise judged
            answer, verdict = judged.answer, judged.verdict
            if answer.code not in "TWPK":
                return refusal_of(room.release, answer)
        except errors.NotInForce as error:
            self._rooms.leave(room, cause=error.cause)
            return None
        except errors.Contradiction:
            # The admission that met it has condemned the state before it told anybody.
            return None
        except (RedisError, OSError):
            return _unreachable()
        record = judged.record
        assert record is not None  # noqa: S101 - with these letters the script tells of a claim that it knows
        if verdict is None:
            return Decided(room.release, record, repeated=True)
        return await self._told(room, record, verdict, repeated=answer.code == "P")

    async def _told(
        self, room: Room, record: ClaimRecord, verdict_later: asyncio.Future[Verdict], *, repeated: bool
    ) -> Outcome | None:
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
                return errors.TimeClash()
            case Verdict.VOID:
                return errors.ClaimVoid()
            case Verdict.ELSEWHERE:
                return IdempotencyMismatch()
            case Verdict.STALE | Verdict.CONTRADICTION:
                return None
            case Verdict.UNKNOWN:
                return Pending(jittered_ms(REBUILD_RETRY_MS))
            case _:
                assert_never(verdict)

    async def known_claim(self, release_id: UUID, claim_id: UUID, account: bytes) -> Decided | Pending:
        """Answer "did I get it?" from Redis alone. Raises `NotFound` where the gate knows no such claim of theirs."""
        room = await self._rooms.room(release_id)
        keys = room.release.keys
        try:
            async with room.links.lend() as link:
                if link.identity != room.release.identity:
                    await link.drop()
                    self._rooms.leave(room, cause="other_server")
                    raise rebuilding_again()
                packed, deadline, epoch = await link.commands(
                    [
                        ["HGET", keys.claims, claim_id.bytes],
                        ["ZSCORE", keys.pending, claim_id.bytes],
                        ["HGET", keys.meta, "epoch"],
                    ]
                )
        except (RedisError, OSError):
            raise _unreachable() from None
        if epoch is None or int(cast("bytes", epoch)) != room.release.epoch:
            self._rooms.leave(room, cause="no_state" if epoch is None else "stale_epoch")
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
            async with room.links.lend() as link:
                meta, pools, time = await link.commands(
                    [
                        ["HMGET", keys.meta, "epoch", "version", "identity"],
                        ["HGETALL", keys.pools],
                        ["TIME"],
                    ]
                )
                identity = link.identity
        except (RedisError, OSError):
            raise _unreachable() from None
        epoch, version, in_force = cast("list[bytes | None]", meta)
        closed = _closed(room.release, epoch, in_force, identity)
        if closed is not None:
            self._rooms.leave(room, cause=closed)
            raise rebuilding_again()
        packed = cast("dict[bytes, bytes]", pools)
        packed.pop(BALLAST_FIELD, None)
        if len(packed) < len(room.release.pool_ids):
            self._rooms.condemn(room, cause="contradiction")
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
            # Asked anew who holds it: what is suspended at an old primary goes on being judged at the new one.
            links = await self._nodes.of(release_id, anew=True)
            async with links.lend() as link:
                await suspend(link, release_id)
        except (RedisError, OSError):
            raise _unreachable() from None

    async def rebuild(self, release_id: UUID, *, after_epoch: int | None = None) -> None:
        """Rebuild a release's state, whatever stands there now; with `after_epoch`, unless a later one is in force.

        Raises `NotFound`, and the drivers' errors.
        """
        await self._rooms.make_anew(release_id, after_epoch=after_epoch)

    async def compare(self, release_id: UUID) -> Comparison | None:
        """Find on what Redis and PostgreSQL disagree, changing nothing (see `differences.compare`)."""
        links = await self._nodes.of(release_id, anew=True)
        return await compare(links, self._database, release_id, self.settings)

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
            await sweep_release(room.release, room.links, self._database, room.settlement, self.settings)
        except errors.GateError as error:
            self._rooms.condemn(room, cause=error.cause)
        except RedisError as error:
            if self._nodes.are_several:
                # This one's trouble: whoever sweeps the others is to go on.
                raise _unreachable() from error
            raise

    async def states(self) -> AsyncGenerator[set[UUID]]:
        """Yield every release that has a state in Redis, some at a time (see `states_in_redis`)."""
        for links in await self._nodes.every():
            try:
                async with aclosing(states_in_redis(links)) as states:
                    async for release_ids in states:
                        yield release_ids
            except RedisError as error:
                if not self._nodes.are_several:
                    raise
                # This one's trouble: whoever looks through the others is to go on.
                log.warning("gate_states_not_read", error=type(error).__name__)

    async def retire(self, release_id: UUID) -> None:
        """Remove the state of a release that is over, unless it was needed of late. Raises like `sweep`."""
        await self.sweep(release_id)
        room = self.entered.get(release_id.bytes)
        # Where the sweep condemned the state, there is nothing to remove before the next round.
        if room is not None and await retire(room.release, room.links):
            log.info("gate_retired", release=str(release_id), epoch=room.release.epoch)
            self._rooms.leave(room)


def _closed(release: Release, epoch: bytes | None, built_on: bytes | None, server: str) -> errors.FenceCause | None:
    """Return why what Redis has in force is not this state, or None where it is."""
    if epoch is None or built_on is None:
        return "no_state"
    if int(epoch) != release.epoch:
        return "stale_epoch"
    return None if server == release.identity else "other_server"


def _unreachable() -> errors.GateUnreachable:
    return errors.GateUnreachable(retry_after_ms=jittered_ms(REBUILD_RETRY_MS))


def _final(room: Room, judged: Judged) -> Outcome | None:
    """Return what a judgement comes to with which nothing is left to do but to say so, or None for every other."""
    if judged.record is not None:
        return Decided(room.release, judged.record, repeated=True)
    return refusal_of(room.release, judged.answer) if judged.answer.code in _FINAL_LETTERS else None
