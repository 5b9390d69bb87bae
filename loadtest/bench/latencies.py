"""What an open loop found out: who waited how long for which answer, and how late the generator itself was."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

# Beyond this share of the latency that is reported, the generator's own lateness is too much a part of it,
_LATE_SHARE: Final = 0.2
# but for a lateness that nobody need care for, whatever the latencies are;
_LATE_MS_ALLOWED: Final = 0.5
# and beyond this one the generator does not keep up: what is measured then is a queue of its own.
_LATE_MS_MAX: Final = 25.0
# Where a curve is drawn: shares of the answers that were quicker.
_CURVE_NINES: Final = tuple(n / 8 for n in range(57))
_SLOWEST: Final = 20


class Quantiles(msgspec.Struct, frozen=True):
    """Some latencies in ms, and when the last of these answers came, in ms from the start of the schedule.

    The curve has pairs of nines (0: the fastest, 1: 90 %, 2: 99 %, …) and ms, as far as there are answers for it.
    """

    count: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    last_ms: float
    curve: tuple[tuple[float, float], ...]


class Slow(msgspec.Struct, frozen=True):
    """One of the slowest: when it was due, by the system's monotonic clock, how long it took and how late it left."""

    due_seconds: float
    latency_ms: float
    late_ms: float


class Latencies(msgspec.Struct, frozen=True):
    """What came of a schedule.

    Latencies run from the scheduled arrival to the last byte of the answer. A lost arrival (no answer, or a broken
    one) has none: where there are any, no quantile means much. Lateness is that of the generator alone: from the
    scheduled arrival to the moment when it got round to it. `started_seconds` is by the system's monotonic clock, which
    every process of the machine reads alike.
    """

    started_seconds: float
    arrivals: int
    lost: int
    all: Quantiles
    by_status: dict[int, Quantiles]
    late_p99_ms: float
    late_max_ms: float
    connections: int
    slowest: tuple[Slow, ...]

    @property
    def statuses(self) -> dict[int, int]:
        """Return how often each status came."""
        return {status: quantiles.count for status, quantiles in self.by_status.items()}

    @property
    def fault(self) -> str | None:
        """Say why these latencies are not the server's, or None where they are."""
        allowed_ms = min(max(self.all.p99_ms * _LATE_SHARE, _LATE_MS_ALLOWED), _LATE_MS_MAX)
        if self.late_p99_ms <= allowed_ms:
            return None
        return (
            f"the generator was late itself: its p99 of lateness is {self.late_p99_ms:.1f} ms, and beside a measured "
            f"p99 of {self.all.p99_ms:.1f} ms no more than {allowed_ms:.1f} ms can be let pass"
        )


def latencies_of(
    arrivals: Sequence[float],
    *,
    answered_seconds: Sequence[float],
    late_seconds: Sequence[float],
    statuses: Sequence[int],
    started_seconds: float,
    connections: int,
) -> Latencies:
    """Sum up a run. Everything is by the number of the arrival, in seconds from the start; status 0 is for the lost."""
    by_status: dict[int, list[int]] = {}
    for number, status in enumerate(statuses):
        by_status.setdefault(status, []).append(number)
    lost = len(by_status.pop(0, ()))
    latency_ms = [(answered - due) * 1e3 for answered, due in zip(answered_seconds, arrivals, strict=True)]

    def quantiles(numbers: Sequence[int]) -> Quantiles:
        ordered = sorted(latency_ms[number] for number in numbers)
        return Quantiles(
            len(ordered),
            *(quantile(ordered, share) for share in (0.5, 0.99, 0.999, 1.0)),
            last_ms=max((answered_seconds[number] for number in numbers), default=0.0) * 1e3,
            curve=_curve(ordered),
        )

    answered = sorted((n for n, status in enumerate(statuses) if status), key=latency_ms.__getitem__)
    late_ms = sorted(late * 1e3 for late in late_seconds)
    return Latencies(
        started_seconds=started_seconds,
        arrivals=len(arrivals),
        lost=lost,
        all=quantiles(answered),
        by_status={status: quantiles(numbers) for status, numbers in sorted(by_status.items())},
        late_p99_ms=quantile(late_ms, 0.99),
        late_max_ms=late_ms[-1],
        connections=connections,
        slowest=tuple(
            Slow(started_seconds + arrivals[n], latency_ms[n], late_seconds[n] * 1e3)
            for n in reversed(answered[-_SLOWEST:])
        ),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that this share of ascending values does not exceed (nearest rank); 0 where there are none."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else 0.0


def _curve(ordered: Sequence[float]) -> tuple[tuple[float, float], ...]:
    # Beyond one in all of them there is nothing to be seen.
    seen = [nines for nines in _CURVE_NINES if 10**nines <= len(ordered)]
    return tuple((nines, quantile(ordered, 1 - 10**-nines)) for nines in seen)
