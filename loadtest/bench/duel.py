"""Lets several sides take turns, so that a machine that slows down slows all of them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.bench.machine import CannotBenchError
from loadtest.bench.results import Row, Spread, Target
from loadtest.bench.stage import Server, Spent, Stage
from loadtest.bench.wrk import LoadReport

# The ids of requests and the digits of dates differ in length by a byte or so; a different answer, by far more.
_SAME_LENGTH: Final = 0.02


@dataclass(frozen=True, slots=True)
class Lap:
    """What one side did in its turn: how much a second, and the processor time in µs that each of it took."""

    per_second: float
    cpu_us: Spent


@dataclass(frozen=True, slots=True)
class Side:
    """One of those that take turns. What it does in its first laps is not counted: an engine that compiles is slow."""

    name: str
    what: str
    run: Callable[[], Awaitable[Lap]]
    warm_up_laps: int = 1


Laps = Mapping[str, Sequence[Lap]]


async def take_turns(sides: Sequence[Side], *, rounds: int, say: Callable[[str], None]) -> Laps:
    """Let each side run once a round. Every round has them in the other order: nobody is always the first."""
    laps: dict[str, list[Lap]] = {side.name: [] for side in sides}
    for side in sides:
        say(f"  warming up: {side.name}")
        for _ in range(side.warm_up_laps):
            await side.run()
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            lap = await side.run()
            laps[side.name].append(lap)
            say(
                f"  round {number + 1} of {rounds}: {side.name} {lap.per_second:,.0f}/s, {lap.cpu_us.total:.1f} µs each"
            )
    return laps


def compare(
    laps: Laps, ours: Side, reference: Side, *, row_id: str, target: Target | None, unit: str = "/s", note: str = ""
) -> Row:
    """Return the row that sets one side against another, round by round."""
    mine, theirs = laps[ours.name], laps[reference.name]
    return Row(
        id=row_id,
        what=ours.what,
        unit=unit,
        value=Spread.of([lap.per_second for lap in mine]),
        target=target,
        reference=Spread.of([lap.per_second for lap in theirs]),
        reference_what=reference.what,
        ratio=Spread.of([lap.per_second / other.per_second for lap, other in zip(mine, theirs, strict=True)]),
        cpu_us=middle_of([lap.cpu_us for lap in mine]),
        reference_cpu_us=middle_of([lap.cpu_us for lap in theirs]),
        note=note,
    )


def middle_of(spent: Sequence[Spent]) -> Spent:
    """Return the medians, part by part."""
    return Spent(
        Spread.of([one.server for one in spent]).median,
        Spread.of([one.redis for one in spent]).median,
        Spread.of([one.postgres for one in spent]).median,
    )


async def lap_of(stage: Stage, server: Server, work: Callable[[], Awaitable[LoadReport]]) -> tuple[Lap, LoadReport]:
    """Run some load on a server, and return what it did for how much."""
    before = stage.spent(server)
    report = await work()
    spent = stage.spent(server) - before
    return Lap(report.per_second, spent.each(report.answers)), report


def require_alike(name: str, report: LoadReport, *, refusals: bool, bytes_each: float) -> None:
    """Raise `CannotBenchError` unless all that a side answered was of the expected kind.

    wrk counts what is no success, and bytes. A 503 instead of a "sold out", or a shorter page, shows in one of them.
    """
    expected = report.answers if refusals else 0
    is_longer = abs(report.bytes_each - bytes_each) > _SAME_LENGTH * bytes_each
    if report.not_2xx != expected or report.lost or is_longer:
        raise CannotBenchError(
            f"{name} did not do the work that was to be measured: of {report.answers} answers {report.not_2xx} were no "
            f"success ({expected} expected), {report.lost} were lost, and they had {report.bytes_each:.0f} bytes each "
            f"({bytes_each:.0f} expected)."
        )
