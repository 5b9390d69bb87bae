"""Growth is measured on two small sizes: what is told of them has to be there, and has to make sense."""

import shutil
from pathlib import Path
from typing import Final

import pytest

from loadtest.bench.growth import growth
from loadtest.bench.machine import CannotBenchError, this_machine
from loadtest.bench.stage import stage

pytestmark = pytest.mark.anyio

SIZES: Final = (300, 2_000)
WRK: Final = shutil.which("wrk")


def _why_not() -> str:
    """Return why this machine cannot bench, or nothing."""
    try:
        this_machine()
    except CannotBenchError as error:
        return str(error)
    return "" if WRK else "The load generator wrk is missing; CI installs it."


@pytest.mark.skipif(bool(_why_not()), reason=_why_not())
@pytest.mark.timeout(400)
async def test_two_sizes_are_compared_and_drawn(tmp_path: Path) -> None:
    said: list[str] = []
    assert WRK is not None
    async with stage(tmp_path, said.append) as at:
        rows, pictures = await growth(at, WRK, sizes=SIZES, rounds=1, seconds=1, say=said.append)

    assert [row.id for row in rows] == ["P8", "P8b", "P11", "P11b", "G1", "G2", "G3", "G3b", "G3c"]
    for row in rows:
        assert 0 < row.value.low <= row.value.median <= row.value.high, row
    refusal, winner = rows[:2]
    for row in (refusal, winner):
        assert row.cpu_us is not None
        assert row.ratio is not None
        assert 0.2 < row.ratio.median < 5, row
    assert refusal.cpu_us is not None
    assert winner.cpu_us is not None
    # Nothing on the way to a "no" touches PostgreSQL; what it does meanwhile is its own.
    assert refusal.cpu_us.postgres < refusal.cpu_us.server / 5
    assert winner.cpu_us.postgres > 0
    for row in rows[5:]:
        assert row.cpu_us is not None
        assert row.cpu_us.postgres > 0, row
    for picture in pictures:
        assert picture.log_x
        assert picture.curves
        for curve in picture.curves:
            assert tuple(size for size, _ in curve.points) == SIZES
    assert len({picture.title for picture in pictures}) == 4
    assert said
