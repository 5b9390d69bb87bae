"""The wires between the service and its engines lose or delay what they carry, or both engines are gone at once."""

import asyncio
import random
from collections.abc import Callable
from typing import Final, cast

from loadtest.threads import in_thread
from tests.chaos.faults.strikes import HELD_SECONDS, Fault, Play, Strike
from tests.chaos.stand import Stand
from tests.relay import Direction, Relay

DELAY_SECONDS: Final = 0.4


def wire(choose: Callable[[Stand], tuple[Relay, Direction]], *, delays: bool) -> Play:
    """Return what breaks one direction of a wire."""

    async def play(stand: Stand, rng: random.Random, strike: Strike) -> None:
        relay, direction = choose(stand)
        strike.begins()
        if delays:
            direction.delay_seconds = DELAY_SECONDS
            await asyncio.sleep(HELD_SECONDS)
            direction.delay_seconds = 0.0
        else:
            # What is under way is lost, and then the line.
            direction.swallows = True
            await asyncio.sleep(rng.uniform(0.05, 0.5))
            relay.cut()
            direction.swallows = False
        strike.ends()

    return play


def wires() -> list[Fault]:
    """Return a fault for each direction of each wire, and for each way to break it."""
    faults: list[Fault] = []
    for engine, name in (("to_valkey", "Valkey"), ("to_postgres", "PostgreSQL")):
        for way in ("questions", "answers"):
            for delays in (False, True):

                def choose(stand: Stand, engine: str = engine, way: str = way) -> tuple[Relay, Direction]:
                    relay = cast("Relay", getattr(stand, engine))
                    return relay, cast("Direction", getattr(relay, way))

                what = f"come {DELAY_SECONDS} s late" if delays else "are lost, then the line"
                whose = f"questions to {name}" if way == "questions" else f"{name}'s answers"
                faults.append(
                    Fault(
                        f"{name.lower()}_{way}_{'late' if delays else 'lost'}",
                        f"{whose} {what}",
                        wire(choose, delays=delays),
                    )
                )
    return faults


def both_down(*, postgres_first: bool) -> Play:
    """Return what kills both engines and brings them back one after the other."""

    async def play(stand: Stand, rng: random.Random, strike: Strike) -> None:
        plant = stand.plant
        restarts = [plant.restart_postgres, plant.restart_valkey]
        strike.begins()
        plant.kill_valkey()
        plant.kill_postgres()
        for restart in restarts if postgres_first else reversed(restarts):
            await asyncio.sleep(rng.uniform(0.3, 1.0))
            await in_thread(restart)
        strike.ends()

    return play
