"""The one clock. Redis's time decides when a release opens, so every other rule reads the same time.

A process measures how far its monotonic clock lies from Redis's `TIME` and adds the two: reading the clock
costs no round trip, and two machines whose own clocks differ by an hour agree to within a round trip.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from redis.exceptions import RedisError

# The zone of the town: days, months and ages are counted here; instants are stored in UTC.
TOWN_ZONE: Final = ZoneInfo("Asia/Shanghai")

# How often the offset is measured anew. Quartz drifts some 50 µs in a second; a leap or a failover is what
# this interval bounds.
CALIBRATION_INTERVAL_SECONDS: Final = 1.0

RedisTime = Callable[[], Awaitable[tuple[int, int]]]


class Clock:
    """Tells the time of Redis without asking it each time.

    Before the first calibration it tells the machine's own time, which only start-up code may rely on.
    """

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now(self) -> datetime:
        """Return the present instant, aware, in UTC."""
        return datetime.fromtimestamp((time.monotonic_ns() + self._offset_ns) / 1e9, tz=UTC)

    def now_ms(self) -> int:
        """Return the present instant as Unix milliseconds."""
        return (time.monotonic_ns() + self._offset_ns) // 1_000_000

    async def calibrate(self, redis_time: RedisTime) -> None:
        """Measure the offset once: the reply is taken to be as old as half its round trip (Cristian, 1989)."""
        asked_ns = time.monotonic_ns()
        seconds, microseconds = await redis_time()
        answered_ns = time.monotonic_ns()
        midpoint_ns = (asked_ns + answered_ns) // 2
        self._offset_ns = seconds * 1_000_000_000 + microseconds * 1_000 - midpoint_ns

    async def keep_calibrated(self, redis_time: RedisTime) -> None:
        """Calibrate for ever. While Redis is away the last offset stands: a monotonic clock keeps going."""
        while True:
            with contextlib.suppress(RedisError, OSError):
                await self.calibrate(redis_time)
            await asyncio.sleep(CALIBRATION_INTERVAL_SECONDS)


def from_ms(unix_ms: int) -> datetime:
    """Return Unix milliseconds as an aware instant in UTC."""
    return datetime.fromtimestamp(unix_ms / 1000, tz=UTC)


def to_ms(instant: datetime) -> int:
    """Return an aware instant as Unix milliseconds."""
    return round(instant.timestamp() * 1000)


def iso(instant: datetime) -> str:
    """Return an instant as RFC 3339 in the town's zone, to the millisecond."""
    return instant.astimezone(TOWN_ZONE).isoformat(timespec="milliseconds")


def iso_of_ms(unix_ms: int) -> str:
    """Return Unix milliseconds as RFC 3339 in the town's zone: at an opening thousands in the same second."""
    before, after = _iso_around_ms(unix_ms // 1_000)
    return f"{before}{unix_ms % 1_000:03d}{after}"


@lru_cache(maxsize=16)
def _iso_around_ms(unix_seconds: int) -> tuple[str, str]:
    before, _, after = iso(from_ms(unix_seconds * 1_000)).partition(".000")
    return before + ".", after
