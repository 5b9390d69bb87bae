"""A web worker's garbage is collected when nobody waits, and not while somebody does."""

import gc
import weakref
from collections.abc import Generator
from typing import Final

import pytest

from app.cli.garbage import Collector

# Past what is worth a collection, far below where the collector comes by itself.
CYCLES: Final = 6_000
TICK_SECONDS: Final = 0.1


class Cyclic:
    """Garbage that only the collector can free."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def _collector_as_before() -> Generator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


class Ticking:
    """A collector and the time that it is told."""

    def __init__(self) -> None:
        self._collector = Collector()
        self._collector.begin()
        self._now_seconds = 0.0
        self._answered = 0

    def tick(self, *, answers: int = 0, after_seconds: float = TICK_SECONDS) -> None:
        self._now_seconds += after_seconds
        self._answered += answers
        self._collector.tick(self._now_seconds, self._answered)

    def be_quiet(self) -> None:
        for _ in range(5):
            self.tick(answers=20)


@pytest.fixture
def collector() -> Ticking:
    return Ticking()


def garbage(cycles: int = CYCLES) -> "weakref.ref[Cyclic]":
    made = [Cyclic() for _ in range(cycles)]
    return weakref.ref(made[0])


def test_a_quiet_moment_is_for_collecting(collector: Ticking) -> None:
    first = garbage()
    collector.be_quiet()
    assert first() is None


def test_while_thousands_are_answered_garbage_is_left_for_later(collector: Ticking) -> None:
    first = garbage()
    for _ in range(20):
        collector.tick(answers=2_500)
    assert first() is not None
    collector.be_quiet()
    assert first() is None


def test_late_ticks_tell_of_a_rush_before_anybody_is_answered(collector: Ticking) -> None:
    first = garbage()
    for _ in range(20):
        collector.tick(after_seconds=3 * TICK_SECONDS)
    assert first() is not None


def test_winners_who_still_wait_when_the_losers_have_gone_are_not_held_up(collector: Ticking) -> None:
    collector.be_quiet()
    collector.tick(answers=4_700)
    first = garbage()
    for _ in range(4):
        collector.tick()
        assert first() is not None
    collector.tick(answers=300)
    assert first() is not None


def test_a_little_garbage_is_not_worth_a_collection(collector: Ticking) -> None:
    first = garbage(cycles=100)
    collector.be_quiet()
    assert first() is not None


def test_what_survived_is_looked_at_again_some_day(collector: Ticking) -> None:
    old = [Cyclic()]
    seen = weakref.ref(old[0])
    collector.be_quiet()
    for _ in range(250):
        garbage()
        collector.tick()
        # From now on it is garbage, but it has survived a collection, so the small ones look at it no more.
        old.clear()
    assert seen() is None


@pytest.mark.usefixtures("collector")
def test_the_collector_does_not_come_by_itself_for_the_claims_of_an_opening() -> None:
    first = garbage(cycles=1)
    # Forty containers for each of five thousand.
    held = [[] for _ in range(200_000)]  # pyright: ignore[reportUnknownVariableType]
    assert first() is not None
    del held
