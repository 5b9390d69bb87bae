"""Runs a crowd against an address: prepared before, waiting for the second, rushing, then asked again."""

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from loadtest import wire
from loadtest.behaviour import Ending
from loadtest.history import History, Level, Lingering, PoolFacts, ReleaseFacts
from loadtest.http1 import Network, NoConnectionError, raise_file_limit
from loadtest.phone import Caller, Rush
from loadtest.plan import LOOKS_FROM_SECONDS, draw_parents
from loadtest.prepare import CannotRunError, Parent, Preparation, for_each
from loadtest.progress import Phase, PoolProgress, Progress, ProgressSink
from loadtest.settle import settle

LEVEL_EVERY_SECONDS: Final = 0.25
_CONNECTING_AT_ONCE: Final = 128
# Lines stand this long before the first early bird looks.
_CONNECTED_BEFORE_SECONDS: Final = 0.3
_CONNECTS_PER_SECOND: Final = 1500.0
_CLOCK_SAMPLES: Final = 7
_OVER_EVERY_SECONDS: Final = 0.25
# Nobody rushes for ever: past this the rush is over whatever happens.
_RUSH_SECONDS_MAX: Final = 90.0
_GOING_HOME_SECONDS: Final = 12.0
# A queue moves in the transaction that gives back, so waiters alone need only a moment more.
_QUEUE_QUIET_SECONDS: Final = 2.0
# A place given back is on offer again within a moment; nothing on offer for this long means nothing comes.
_FULL_QUIET_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class CrowdPlan:
    """One rush: where, how many, from which seed.

    `refill_seconds` bounds how long hopeful parents stay after the last place was given back.
    """

    base_url: str
    parents: int
    seed: int
    release_id: str = ""
    refill_seconds: float = 15.0


@dataclass(slots=True)
class CrowdResult:
    """What a crowd brings home; `judge` reads it."""

    plan: CrowdPlan
    release: ReleaseFacts
    history: History
    run_name: str
    started_at: str
    # From the opening to the last parent going home, and from the first sign-in to the last pass.
    rush_seconds: float = 0.0
    preparing_seconds: float = 0.0
    # The error of the crowd's reading of the server's clock is at most this.
    clock_error_seconds: float = 0.0
    # CPU of this process during the rush, by request: what the crowd itself cost.
    cpu_us_per_request: float = 0.0
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class ServerClock:
    """The server's clock read through this process's own: `epoch = perf_counter + offset`."""

    offset_seconds: float
    error_seconds: float

    def until(self, epoch_seconds: float) -> float:
        """Seconds from now to a moment of the server's clock."""
        return epoch_seconds - self.offset_seconds - time.perf_counter()


class Crowd:
    """A crowd in the making. Use `gather` to open one; then sign in, fetch passes, rush."""

    def __init__(self, plan: CrowdPlan, network: Network, show: ProgressSink) -> None:
        self.plan = plan
        self.network = network
        # Keeps this run's accounts apart from those of another run of the same seed.
        self.run_name = f"{plan.seed}-{os.urandom(4).hex()}"
        self._show = show
        self.progress = Progress(total=plan.parents)
        self._began_at = time.perf_counter()
        self._preparation = Preparation(network, run_name=self.run_name, said=self._prepared)
        self._parents: list[Parent] = []
        self.preparing_seconds = 0.0
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")

    def show(self) -> None:
        """Hand the progress to whoever watches."""
        self.progress.elapsed_seconds = time.perf_counter() - self._began_at
        self._show(self.progress)

    def enter(self, phase: Phase) -> None:
        """Begin the next act."""
        self.progress.phase = phase
        self.progress.done = 0
        self.show()

    def _prepared(self, done: int) -> None:
        self.progress.done = done
        if done % 50 == 0 or done == self.progress.total:
            self.show()

    async def read_clock(self) -> ServerClock:
        """Read the server's clock: of several samples the one with the shortest round trip (Cristian 1989)."""
        best: ServerClock | None = None
        for _ in range(_CLOCK_SAMPLES):
            sent_at = time.perf_counter()
            answer = await self._preparation.ask("GET", "/v1/time")
            heard_at = time.perf_counter()
            now_ms = self.understand(answer, wire.TimeBody).now_ms
            half_trip = (heard_at - sent_at) / 2
            if best is None or half_trip < best.error_seconds:
                best = ServerClock(now_ms / 1000.0 - sent_at - half_trip, half_trip)
        assert best is not None  # noqa: S101 - there is at least one sample
        return best

    @staticmethod
    def understand(answer: wire.Answer, shape: type[wire.Shape]) -> wire.Shape:
        """Read a good answer, or say why the crowd cannot run."""
        try:
            return wire.read(answer, shape)
        except wire.UnreadableError as error:
            raise CannotRunError(str(error)) from error

    async def require_release(self, release_id: str) -> None:
        """Raise `CannotRunError`, with a sentence, unless there is such a release and it can still be rushed."""
        answer = await self._preparation.ask("GET", f"/v1/releases/{release_id}")
        if answer.status in {404, 422}:
            raise CannotRunError(
                f"There is no published release {release_id} at {self.plan.base_url}; GET /v1/releases lists them."
            )
        release = self.understand(answer, wire.ReleaseBody)
        now_ms = self.understand(await self._preparation.ask("GET", "/v1/time"), wire.TimeBody).now_ms
        if release.state == "cancelled":
            raise CannotRunError(f"The release {release_id} was cancelled.")
        if release.closes_at is not None and release.closes_at.timestamp() * 1000 <= now_ms:
            raise CannotRunError(f"The release {release_id} closed at {release.closes_at.isoformat()}.")

    async def sign_in(self) -> None:
        """Sign all parents in and register their children. Raises `CannotRunError`."""
        began_at = time.perf_counter()
        self.enter(Phase.SIGNING_IN)
        plans = draw_parents(self.plan.seed, self.plan.parents)
        self._parents = await self._preparation.sign_in(plans, datetime.now(UTC))
        self.preparing_seconds += time.perf_counter() - began_at

    async def fetch_passes(self, release_id: str) -> None:
        """Fetch a pass for everybody. Raises `CannotRunError`."""
        began_at = time.perf_counter()
        self.enter(Phase.PASSES)
        await self._preparation.fetch_passes(self._parents, release_id)
        self.preparing_seconds += time.perf_counter() - began_at

    async def _release_facts(self, release_id: str) -> tuple[ReleaseFacts, float]:
        answer = await self._preparation.ask("GET", f"/v1/releases/{release_id}")
        body = self.understand(answer, wire.ReleaseBody)
        answer = await self._preparation.ask("GET", f"/v1/releases/{release_id}/availability")
        left = {pool.id: pool.left for pool in self.understand(answer, wire.Availability).pools}
        opens_at = body.opens_at.timestamp()
        pools = sorted(body.pools, key=lambda pool: (pool.starts_at, pool.title, pool.id))
        facts = ReleaseFacts(
            id=body.id,
            title=body.title,
            opens_at=body.opens_at.isoformat(),
            person_limit=body.person_limit,
            account_limit=body.account_limit,
            pools=tuple(
                PoolFacts(
                    id=pool.id,
                    title=pool.title,
                    capacity=pool.capacity,
                    left_before=left.get(pool.id, pool.capacity),
                    starts_at_s=pool.starts_at.timestamp() - opens_at,
                    ends_at_s=pool.ends_at.timestamp() - opens_at,
                )
                for pool in pools
            ),
        )
        return facts, opens_at

    async def rush(self, release_id: str) -> CrowdResult:
        """Wait for the opening and rush; then ask again about every promise. Raises `CannotRunError`."""
        facts, opens_at = await self._release_facts(release_id)
        clock = await self.read_clock()
        rush = Rush(
            network=self.network,
            release_id=release_id,
            pools=tuple(pool.id for pool in facts.pools),
            seed=self.plan.seed,
            opening_at=opens_at - clock.offset_seconds,
            opens_at_epoch_seconds=opens_at,
            history=History(),
        )
        self.progress.pools = [PoolProgress(p.title, p.capacity, p.left_before) for p in facts.pools]
        self.progress.places = sum(pool.left_before for pool in facts.pools)
        callers = [Caller(rush, parent) for parent in self._parents]
        await self._wait_and_connect(rush, callers)
        self.enter(Phase.COUNTDOWN)
        result = CrowdResult(
            self.plan, facts, rush.history, self.run_name, self.started_at, clock_error_seconds=clock.error_seconds
        )
        result.preparing_seconds = self.preparing_seconds
        # What stands now stays: the collector need not walk thousands of parents in the busiest second.
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            await self._play(rush, callers, result)
        finally:
            gc.enable()
            gc.unfreeze()
        self.enter(Phase.SETTLING)
        await settle(rush, self._parents, self._preparation)
        await self._note_levels(rush)
        return result

    async def _wait_and_connect(self, rush: Rush, callers: list[Caller]) -> None:
        lead_seconds = LOOKS_FROM_SECONDS + _CONNECTED_BEFORE_SECONDS + len(callers) / _CONNECTS_PER_SECOND
        self.enter(Phase.COUNTDOWN)
        while (wait_seconds := -rush.now() - lead_seconds) > 0:
            self.progress.opens_in_seconds = -rush.now()
            self.show()
            await asyncio.sleep(min(LEVEL_EVERY_SECONDS, wait_seconds))
        self.enter(Phase.CONNECTING)

        async def connect(caller: Caller) -> None:
            # Refused or slow now: the phone dials again when its parent taps, as phones do.
            with contextlib.suppress(NoConnectionError):
                await caller.connect()
            self._prepared(self.progress.done + 1)

        await for_each(callers, _CONNECTING_AT_ONCE, connect)

    async def _play(self, rush: Rush, callers: list[Caller], result: CrowdResult) -> None:
        endings = rush.history.endings
        cpu_before = time.process_time()
        operations_before = len(rush.history.operations)

        async def play(caller: Caller) -> None:
            number = caller.parent.plan.number
            endings[number] = Ending.UNANSWERED.value
            ending = await caller.live()
            endings[number] = ending.value
            still_wanted = rush.staying.get(number)
            if rush.is_over and ending is Ending.REFUSED and still_wanted:
                rush.history.lingering.append(Lingering(number, still_wanted))

        lives = {asyncio.create_task(play(caller)) for caller in callers}
        watching = asyncio.create_task(self._watch_levels(rush))
        try:
            await self._until_over(rush, lives)
            rush.is_over = True
            _, late = await asyncio.wait(lives, timeout=_GOING_HOME_SECONDS)
            if late:
                result.notes.append(f"{len(late)} parents had no answer when the crowd went home")
        finally:
            rush.is_over = True
            for task in (*lives, watching):
                task.cancel()
            ends = await asyncio.gather(*lives, watching, return_exceptions=True)
        failures = [end for end in ends if isinstance(end, Exception)]
        if failures:
            raise ExceptionGroup("phones of the crowd broke", failures[:10])
        result.rush_seconds = rush.now()
        answered = max(1, len(rush.history.operations) - operations_before)
        result.cpu_us_per_request = (time.process_time() - cpu_before) * 1e6 / answered

    async def _until_over(self, rush: Rush, lives: set[asyncio.Task[None]]) -> None:
        """Return when nobody is left who could still change anything, or when the patience of the hopeful ends."""
        quiet_since: float | None = None
        while rush.now() < _RUSH_SECONDS_MAX:
            await asyncio.sleep(_OVER_EVERY_SECONDS)
            active = sum(not life.done() for life in lives)
            staying = [number for number in rush.staying if rush.history.endings.get(number) == Ending.UNANSWERED.value]
            if active == 0:
                return
            if active > len(staying):
                quiet_since = None
                continue
            quiet_since = rush.now() if quiet_since is None else quiet_since
            if sum(rush.held.values()) >= self.progress.places:
                return
            quiet_seconds = rush.now() - max(quiet_since, rush.gave_back_at)
            # Places that the crowd did not count, taken by others while it rushed, are taken all the same.
            if quiet_seconds > _FULL_QUIET_SECONDS and rush.history.levels and not any(rush.history.levels[-1].left):
                return
            hopeful = any(rush.staying[number] for number in staying)
            patience_seconds = self.plan.refill_seconds if hopeful else _QUEUE_QUIET_SECONDS
            if quiet_seconds > patience_seconds:
                return

    async def _note_levels(self, rush: Rush) -> None:
        """Note the places left now; a reading that fails is left out."""
        position = {pool: place for place, pool in enumerate(rush.pools)}
        with contextlib.suppress(CannotRunError, wire.UnreadableError):
            answer = await self._preparation.ask("GET", f"/v1/releases/{rush.release_id}/availability")
            at_s = rush.now()
            left, waiting = [0] * len(position), [0] * len(position)
            for level in wire.read(answer, wire.Availability).pools:
                left[position[level.id]] = level.left
                waiting[position[level.id]] = level.waiting
            rush.history.levels.append(Level(at_s, tuple(left), tuple(waiting)))
            for shown, places in zip(self.progress.pools, left, strict=True):
                shown.left = places

    async def _watch_levels(self, rush: Rush) -> None:
        """Note the places left four times a second, for the record and for whoever watches."""
        while True:
            due_at = time.perf_counter() + LEVEL_EVERY_SECONDS
            await self._note_levels(rush)
            progress = self.progress
            progress.phase = Phase.COUNTDOWN if rush.now() < 0 else Phase.RUSH
            progress.opens_in_seconds = -rush.now()
            progress.held = sum(rush.held.values())
            progress.waiting = len(rush.waiting)
            progress.answers = len(rush.history.operations)
            progress.refusals = dict(rush.refusals)
            progress.done = sum(
                ending != Ending.UNANSWERED.value or number in rush.staying
                for number, ending in rush.history.endings.items()
            )
            self.show()
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))


@contextlib.asynccontextmanager
async def gather(plan: CrowdPlan, show: ProgressSink) -> AsyncGenerator[Crowd]:
    """Open a crowd; leaving it hangs up every phone. Raises `TooFewFilesError` where the system is set too low."""
    # A double tap takes a second line; nobody has three.
    raise_file_limit(plan.parents + plan.parents // 8)
    async with Network(plan.base_url) as network:
        yield Crowd(plan, network, show)


async def run_crowd(plan: CrowdPlan, *, progress: ProgressSink) -> CrowdResult:
    """Run one whole rush against the release of the plan. Raises `CannotRunError` where it could not take place."""
    async with gather(plan, progress) as crowd:
        await crowd.sign_in()
        await crowd.fetch_passes(plan.release_id)
        return await crowd.rush(plan.release_id)
