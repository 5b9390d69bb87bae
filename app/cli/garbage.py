"""Keeps the garbage collector out of the second of an opening: a web worker collects when nobody waits.

What a request makes is freed with its answer, without the collector, and so is a connection that is over. Left to
itself the collector would come when much has been made and not yet freed, which is at the height of a rush: it would
walk everything that thousands of phones have here, to find nothing.
"""

import gc
from typing import Final

# Containers made and not yet freed before the collector comes by itself after all (then young collections before a
# middle-aged one, and so on). More than the claims of an opening hold; a full collection it never makes by itself.
_BY_ITSELF: Final = (300_000, 20, 1_000_000)
# A collection is worth its call from here on; one that begins at so many is over in 2 ms or so.
_WORTH_CONTAINERS: Final = 5_000
# Every so many collections a full one, which walks all connections and caches.
_FULL_EVERY: Final = 100
# The ticks are a tenth of a second apart. A late one tells of a loop that has more to do than it can.
_TICK_SECONDS_MAX: Final = 0.12
# Answers between two ticks with which a tick still counts as quiet: 1,000 in a second, a small part of a rush.
_QUIET_ANSWERS_MAX: Final = 100
# So many quiet ticks in a row, before it is: the losers of an opening have their answers before the winners, for whom
# PostgreSQL has to write.
_QUIET_TICKS: Final = 5


class Collector:
    """Collects at quiet ticks. `begin` first, once everything is there that stays for the life of the process."""

    def __init__(self) -> None:
        self._ticked_seconds = 0.0
        self._answered = 0
        self._quiet_ticks = 0
        self._collections = 0

    def begin(self) -> None:
        """Take what there is out of every collection to come, and the collections out of the rush."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_BY_ITSELF)

    def tick(self, now_seconds: float, answered: int) -> None:
        """Collect, if it is worth it and nobody has to wait for it. `answered` counts all answers so far."""
        is_quiet = (
            now_seconds - self._ticked_seconds <= _TICK_SECONDS_MAX and answered - self._answered <= _QUIET_ANSWERS_MAX
        )
        self._ticked_seconds, self._answered = now_seconds, answered
        self._quiet_ticks = self._quiet_ticks + 1 if is_quiet else 0
        if self._quiet_ticks >= _QUIET_TICKS and gc.get_count()[0] >= _WORTH_CONTAINERS:
            self._collections += 1
            gc.collect(2 if self._collections % _FULL_EVERY == 0 else 1)
