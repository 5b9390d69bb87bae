"""Notices that the loop of this process did not turn for a while: the process was stopped, or something held it up.

What has come in meanwhile is read when it turns again, and that whoever sent it is gone only a turn later. Who must not
act on what nobody waits for any more gives the loop that turn.
"""

import asyncio
import math
import time
from typing import Final

_BEAT_SECONDS: Final = 0.25
# Longer than a busy loop takes for a turn, shorter than a phone waits.
STALL_SECONDS: Final = 1.0
# How long after a stall there may still be something to read that came in its course.
_AFTERMATH_SECONDS: Final = 0.5


class Stalls:
    """One for each loop. As long as nobody watches, there are none."""

    def __init__(self) -> None:
        self._beat_seconds = math.inf
        self._over_until_seconds = -math.inf

    async def watch(self) -> None:
        """Beat until cancelled."""
        while True:
            now_seconds = time.monotonic()
            if now_seconds - self._beat_seconds >= STALL_SECONDS:
                self._over_until_seconds = now_seconds + _AFTERMATH_SECONDS
            self._beat_seconds = now_seconds
            await asyncio.sleep(_BEAT_SECONDS)

    def is_just_over(self) -> bool:
        """Tell whether what is read now may have come while nothing turned."""
        now_seconds = time.monotonic()
        return now_seconds < self._over_until_seconds or now_seconds - self._beat_seconds >= STALL_SECONDS
