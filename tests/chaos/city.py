"""Single faults where a release has as many places as a city: for how long does nobody get one?

No crowd, and no checker that reads everything: phones ask for one place after the other, and what they were promised is
looked for in PostgreSQL. The state of such a release takes seconds to make, and until it is made nobody is judged.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from uuid import UUID

import asyncpg

from loadtest.bench.city import publish_city
from loadtest.history import Operation
from loadtest.http1 import Network
from tests.booking.gate.builders import MadeRelease
from tests.chaos.crowd import Crowd
from tests.chaos.engines import Say, Template
from tests.chaos.faults import FAULTS, Fault, Strike
from tests.chaos.rounds import Outcome, play, recovery_of
from tests.chaos.stand import Stand

UNAVAILABLE_SECONDS_MAX: Final = 15.0
# One of each kind after which a state may have to be made anew, or PostgreSQL to recover.
FAULTS_OF_A_CITY: Final[Sequence[Fault]] = [
    FAULTS[name]
    for name in (
        "web_killed",
        "background_killed",
        "crash_rebuilding",
        "crash_before_activation",
        "valkey_killed",
        "valkey_emptied",
        "flushall",
        "old_copy_promoted",
        "postgres_killed",
        "postgres_restarted",
        "backend_killed",
        "both_down_postgres_first",
        "both_down_valkey_first",
    )
]
# In the pools that the phones ask for.
_OPEN_PLACES: Final = 14 * 1_000
# How long somebody is waited for who gets a place: several times what may pass.
_WAIT_SECONDS_MAX: Final = 90.0
# From the first place on until it strikes, and from the first place after it until the end.
_BEFORE_SECONDS: Final = 1.0
_AFTER_SECONDS: Final = 1.0
_LOOK_EVERY_SECONDS: Final = 0.05
_HELD: Final = """
SELECT claim_id, place_no FROM booking WHERE claim_id = ANY ($1) AND pool_id = $2 AND status = 'confirmed'
"""


@dataclass(frozen=True, slots=True)
class City:
    """A cluster with a city in it, made once; each round gets a copy."""

    template: Template
    made: MadeRelease

    @classmethod
    def found(cls, directory: Path, places: int, say: Say) -> Self:
        """Found one under this directory, with so many places that are booked. Blocks for a minute at a million."""
        founded: list[MadeRelease] = []
        template = Template.make(
            directory, lambda _sentence: None, lambda dsn: founded.append(asyncio.run(_settle(dsn, places, say)))
        )
        return cls(template, founded[0])

    async def play(self, number: int, fault: Fault, *, seed: str, directory: Path) -> Outcome:
        """Play one round of a fault."""
        return await play(
            number, fault, seed=seed, template=self.template, directory=directory, made=self.made, act=_strike
        )


async def _settle(dsn: str, places: int, say: Say) -> MadeRelease:
    database = await asyncpg.connect(dsn)
    try:
        release = await publish_city(database, places=places, accounts=places, open_places=_OPEN_PLACES, say=say)
        rows = await database.fetch(
            "SELECT count(*) AS places FROM pool JOIN place ON place.pool_id = pool.id WHERE release_id = $1"
            " GROUP BY pool.id, ordinal ORDER BY ordinal",
            release.release_id,
        )
    finally:
        await database.close()
    return MadeRelease(release.release_id, release.pool_ids, tuple(row["places"] for row in rows))


async def _strike(stand: Stand, fault: Fault, rng: random.Random, outcome: Outcome) -> None:
    """Have phones ask all the time, let the fault strike, and note how long nobody got a place."""
    await stand.ready()
    strike, chance = Strike(), random.Random(rng.getrandbits(64))
    async with Network(stand.address) as network:
        crowd = Crowd(network, stand.made, stand.keys, rng)
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.probe())
            try:
                # Whoever asks first has the state made.
                await _somebody_got_a_place(crowd, since_s=0.0)
                await asyncio.sleep(_BEFORE_SECONDS)
                await fault.play(stand, chance, strike)
                await _somebody_got_a_place(crowd, since_s=crowd.now() - (time.perf_counter() - strike.ended_at))
                await asyncio.sleep(_AFTER_SECONDS)
            finally:
                crowd.is_over.set()
        recovery = recovery_of(crowd.probes, crowd.now(), strike, None)
        operations = crowd.history.operations
    outcome.operations, outcome.missed = len(operations), strike.missed
    outcome.unknowns = sum(operation.status == 0 for operation in operations)
    outcome.promised = len(crowd.probes.yes_at_s)
    outcome.recovery = recovery
    if recovery.unavailable_after_s is None or recovery.unavailable_after_s > UNAVAILABLE_SECONDS_MAX:
        outcome.broken["recovery_is_bounded"] = [f"nobody got a place for {recovery.unavailable_after_s} s"]
    if lost := await _promised_and_lost(stand, operations):
        outcome.broken["every_yes_is_kept"] = [f"claim {claim} was promised place {place}" for claim, place in lost]


async def _somebody_got_a_place(crowd: Crowd, *, since_s: float) -> None:
    """Wait for that, within bounds."""
    deadline = crowd.now() + _WAIT_SECONDS_MAX
    while crowd.now() < deadline:
        if any(at_s > since_s for at_s in crowd.probes.yes_at_s):
            return
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


async def _promised_and_lost(stand: Stand, operations: Sequence[Operation]) -> list[tuple[str, int | None]]:
    """Return claims that heard "yes", with the place that PostgreSQL does not have for them."""
    promised = {o.claim: o.seats[0].place_no for o in operations if o.is_yes}
    async with stand.database() as database:
        rows = await database.fetch(_HELD, [UUID(claim) for claim in promised], stand.made.pools[-1])
    held = {str(row["claim_id"]): row["place_no"] for row in rows}
    return [(claim, place) for claim, place in promised.items() if held.get(claim) != place]
