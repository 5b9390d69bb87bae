"""Which cores the bench takes, and what their host took away."""

import os

import psutil
import pytest

from loadtest.bench.machine import _two_cores, stolen_seconds

_ROUNDING_SECONDS = 1e-6

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the bench needs Linux")


@pytest.mark.parametrize(("ours", "taken"), [({2, 5, 7}, (2, 5)), ({3}, (3, 3))])
def test_the_first_two_cores_that_may_be_used_are_taken(
    ours: set[int], taken: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def affinity(_pid: int) -> set[int]:
        return ours

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    assert _two_cores() == taken


def test_what_the_host_took_away_is_read_from_the_field_that_says_so() -> None:
    def of_two_cores() -> float:
        steals: list[float] = [getattr(times, "steal", 0.0) for times in psutil.cpu_times(percpu=True)[:2]]
        return sum(steals)

    if sorted(os.sched_getaffinity(0))[:2] != [0, 1]:
        pytest.skip("the two cores of this process are not the machine's first two")
    before = of_two_cores()
    # The same hundredths, added in another way, may differ in the last bit.
    assert before - _ROUNDING_SECONDS <= stolen_seconds() <= of_two_cores() + _ROUNDING_SECONDS
