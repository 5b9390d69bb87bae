"""Processes of the service are killed or frozen, or die where it hurts most."""

import asyncio
import random
import time
from typing import Final

from tests.chaos.engines import kill
from tests.chaos.faults.strikes import Fault, Play, Strike, frozen
from tests.chaos.stand import PAUSE_SECONDS, Stand

# A crash point that nobody passes within this time was not struck. Orphans are swept after their deadline, and a state
# of a million places takes seconds to make.
_CRASH_SECONDS_MAX: Final = PAUSE_SECONDS + 16.0
_LOOK_EVERY_SECONDS: Final = 0.005


async def kill_web(stand: Stand, rng: random.Random, strike: Strike) -> None:
    strike.begins()
    kill(rng.choice(stand.webs()))


async def freeze_web(stand: Stand, rng: random.Random, strike: Strike) -> None:
    await frozen([rng.choice(stand.webs())], PAUSE_SECONDS, strike)


async def kill_background(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    strike.begins()
    kill(stand.background())


async def freeze_background(stand: Stand, _rng: random.Random, strike: Strike) -> None:
    await frozen([stand.background()], PAUSE_SECONDS, strike)


def crash(point: str, *, after: Play | None = None) -> Play:
    """Let a process die at a crash point, if need be after something that leads there."""

    async def play(stand: Stand, rng: random.Random, strike: Strike) -> None:
        strike.begins()
        # A rebuild is made once, a sweep finds orphans once; in a crowd many pass.
        stand.arm(1 if after is not None else rng.randint(1, 4))
        if after is not None:
            await after(stand, rng, strike)
        deadline = time.perf_counter() + _CRASH_SECONDS_MAX
        while not stand.somebody_died(point):
            if time.perf_counter() > deadline:
                strike.missed = True
                return
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
        strike.begins()

    return play


async def leave_orphans(stand: Stand, rng: random.Random, strike: Strike) -> None:
    """Lose a whole group of winners: some of their phones ask no more."""
    await crash("before_the_commit", after=nothing)(stand, rng, strike)


async def nothing(_stand: Stand, _rng: random.Random, strike: Strike) -> None:
    """Break nothing."""
    strike.begins()


def crashing(name: str, what: str, point: str, *, after: Play | None = None) -> Fault:
    """Return a fault in which a process dies at a crash point."""
    if after is leave_orphans:
        # A claim that its phone asks about again is no orphan.
        return Fault(name, what, crash(point, after=after), f"{point}+before_the_commit", gives_up_share=1.0)
    return Fault(name, what, crash(point, after=after), point)
