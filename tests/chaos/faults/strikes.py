"""What a fault is, and how it tells when it struck."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import psutil

from tests.chaos.crowd import GIVES_UP_SHARE
from tests.chaos.engines import freeze, thaw
from tests.chaos.stand import Stand
from tests.chaos.storm import Heard

HELD_SECONDS: Final = 2.0


@dataclass(slots=True)
class Strike:
    """When a fault began and when it was over, by `time.perf_counter`. `missed`: it found nothing to strike.

    `storm` is what a storm heard.
    """

    began_at: float = 0.0
    ended_at: float = 0.0
    missed: bool = False
    storm: Heard | None = None

    def begins(self) -> None:
        """Note that it breaks now."""
        self.began_at = self.ended_at = time.perf_counter()

    def ends(self) -> None:
        """Note that it is mended now."""
        self.ended_at = time.perf_counter()


Play = Callable[[Stand, random.Random, Strike], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can break. `seam` is opened in the service's processes for the whole round.

    `settings` are the service's in this round, besides those of every round. `gives_up_share` of those who hear nothing
    do not ask again.
    """

    name: str
    what: str
    play: Play
    seam: str = ""
    on_a_small_disk: bool = False
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    gives_up_share: float = GIVES_UP_SHARE


async def frozen(processes: list[psutil.Process], seconds: float, strike: Strike) -> None:
    """Stop these processes for a while."""
    strike.begins()
    freeze(processes)
    await asyncio.sleep(seconds)
    thaw(processes)
    strike.ends()
