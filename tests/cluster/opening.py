"""An opening of several releases that lasts some seconds, and what the phones of each heard, second by second."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

import asyncpg
from redis.asyncio import Redis

from app.booking.gate.desk import Request
from app.booking.gate.passes import PassSigner
from app.booking.gate.rooms import OUT_OF_REACH
from app.core.problems import Problem
from app.core.tasks import end_task
from tests.booking.gate.agreement import assert_agrees
from tests.booking.gate.builders import MadeRelease, Phone, Said, Worker, held
from tests.booking.gate.conftest import OpenWorker

# Times that a server waits, shorter than by default: what a deadline is for comes as surely after three seconds.
PATIENCE: Final[Mapping[str, object]] = {
    "redis_timeout_ms": 1_000,
    "commit_wait_ms": 1_000,
    "commit_timeout_ms": 2_000,
    "pending_deadline_ms": 3_000,
    "sweep_interval_ms": 250,
}
# A release has a place for each of its phones but these; they come so far apart.
UNLUCKY: Final = 5
_APART_SECONDS: Final = 0.1
_ASKS_AGAIN_SECONDS: Final = 0.05
_KNOWN_SECONDS_MAX: Final = 25.0
# Says nothing that stands: the phone asks again with the same claim.
_NOT_YET: Final = frozenset({"pending", "full", "undecided"})
# What happens to somebody in mid-opening.
Blow = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer, when it came, and to which claim."""

    at_s: float
    asked_s: float
    claim: Request
    said: Said


@dataclass
class Opening:
    """Phones of several releases, and all that they heard."""

    workers: Sequence[Worker]
    signer: PassSigner
    releases: Sequence[MadeRelease]
    heard: dict[MadeRelease, list[Heard]] = field(default_factory=dict[MadeRelease, list[Heard]])
    # When the blow fell.
    struck_s: float = 0.0

    @classmethod
    async def played(
        cls,
        open_worker: OpenWorker,
        signer: PassSigner,
        releases: Sequence[MadeRelease],
        blow: Blow,
        *,
        after_seconds: float,
    ) -> Self:
        """Let every phone come, one after the other in each release, and ask until it knows; a blow falls meanwhile.

        Two workers answer, and a third sweeps all the time.
        """
        opening = cls([await open_worker(), await open_worker()], signer, releases)
        async with _sweeping(await open_worker(), releases), asyncio.TaskGroup() as group:
            for made in releases:
                opening.heard[made] = []
                group.create_task(opening._come(made))
            await asyncio.sleep(after_seconds)
            opening.struck_s = time.monotonic()
            await blow()
        return opening

    async def _come(self, made: MadeRelease) -> None:
        turns = itertools.cycle(self.workers)
        async with asyncio.TaskGroup() as group:
            for _ in range(made.capacities[0] + UNLUCKY):
                group.create_task(self._pursue(made, Phone.with_pass(self.signer, made), turns))
                await asyncio.sleep(_APART_SECONDS)

    async def _pursue(self, made: MadeRelease, phone: Phone, turns: "itertools.cycle[Worker]") -> None:
        claim = phone.claim()
        async with asyncio.timeout(_KNOWN_SECONDS_MAX):
            while True:
                asked_s = time.monotonic()
                said = await next(turns).ask(claim)
                self.heard[made].append(Heard(time.monotonic(), asked_s, claim, said))
                if said.word == "claim_void":
                    # As advised: what was begun under this id will never be.
                    claim = phone.claim()
                elif said.status < 500 and said.word not in _NOT_YET:
                    return
                await asyncio.sleep(_ASKS_AGAIN_SECONDS)

    def statuses(self, made: MadeRelease) -> set[int]:
        """Return every status that phones of a release heard."""
        return {heard.said.status for heard in self.heard[made]}

    def slowest_s(self, made: MadeRelease) -> float:
        """Return how long the slowest answer took."""
        return max(heard.at_s - heard.asked_s for heard in self.heard[made])

    def away_s(self, made: MadeRelease) -> float:
        """Return the longest time without a "yes" from the strike on: nobody came back sooner."""
        yes = sorted(heard.at_s for heard in self.heard[made] if heard.said.status in {200, 201})
        moments = [self.struck_s, *(at_s for at_s in yes if at_s >= self.struck_s)]
        assert len(moments) > 1, "nobody got a place after that"
        return max(later - sooner for sooner, later in itertools.pairwise(moments))

    async def assert_kept(self, db: "asyncpg.Connection[asyncpg.Record]", redis: Redis) -> None:
        """Assert that every "yes" is in PostgreSQL as it was spoken, every place is held once, and both agree."""
        for made in self.releases:
            capacity = made.capacities[0]
            rows = await db.fetch(
                "SELECT claim_id, place_no FROM booking JOIN claim ON claim.id = claim_id"
                " WHERE release_id = $1 AND status = 'confirmed'",
                made.release_id,
            )
            place_of = {str(row["claim_id"]): row["place_no"] for row in rows}
            told: dict[str, int] = {}
            for heard in self.heard[made]:
                claim_id = heard.claim.path.rpartition("/")[2]
                if heard.said.status in {200, 201}:
                    _, place_no = heard.said.place
                    assert told.setdefault(claim_id, place_no) == place_no, "one answer each claim"
                else:
                    assert heard.said.status in {202, 409, 503}, heard.said
            assert told == place_of, "every yes is kept, and everybody who has a place heard of it"
            assert await held(db, made) == [(0, number) for number in range(1, capacity + 1)]
            refused = {
                heard.claim.path.rpartition("/")[2] for heard in self.heard[made] if heard.said.word == "sold_out"
            }
            assert not refused & place_of.keys()
            await assert_agrees(db, redis, made)


@asynccontextmanager
async def _sweeping(worker: Worker, releases: Sequence[MadeRelease]) -> AsyncGenerator[None]:
    """Sweep all the time, as the background worker does."""

    async def sweep() -> None:
        while True:
            for made in releases:
                with contextlib.suppress(Problem, *OUT_OF_REACH):
                    await worker.gate.sweep(made.release_id)
            await asyncio.sleep(0.25)

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        await end_task(task)
