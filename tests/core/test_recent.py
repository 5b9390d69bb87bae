"""What came last is remembered, and no more than that."""

import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.recent import Recent

KEYS = st.integers(0, 12)
STEPS = st.lists(st.tuples(st.sampled_from(["put", "get"]), KEYS), max_size=200)


@given(limit=st.integers(2, 9), steps=STEPS)
def test_the_half_that_was_touched_last_is_never_forgotten_and_the_limit_is_never_passed(
    limit: int, steps: list[tuple[str, int]]
) -> None:
    recent: Recent[int, str] = Recent(limit)
    last: list[int] = []
    for number, (step, key) in enumerate(steps):
        known = recent.get(key)
        if step == "put":
            recent.put(key, f"{key} {number}")
        if step == "put" or known is not None:
            last = [other for other in last if other != key] + [key]
        assert len(recent) <= limit
        assert all(recent.get(other) is not None for other in last[-(limit // 2) :])
        # Looking at them has touched them, each in its turn, so that their order has not changed.


@given(steps=STEPS)
def test_what_is_remembered_is_what_was_put_there_last(steps: list[tuple[str, int]]) -> None:
    recent: Recent[int, str] = Recent(4)
    truth: dict[int, str] = {}
    for number, (step, key) in enumerate(steps):
        if step == "put":
            truth[key] = f"{key} {number}"
            recent.put(key, truth[key])
        assert recent.get(key) in {truth.get(key), None}


def test_a_value_that_is_asked_for_again_and_again_outlives_all_that_comes_and_goes() -> None:
    recent: Recent[int, str] = Recent(10)
    recent.put(-1, "kept")
    for key in range(1_000):
        recent.put(key, "passing")
        if key % 4 == 0:
            assert recent.get(-1) == "kept"
    assert recent.get(0) is None


@pytest.mark.parametrize("limit", [0, 1])
def test_a_limit_that_leaves_one_generation_without_room_is_a_defect(limit: int) -> None:
    with pytest.raises(AssertionError):
        Recent[int, int](limit)


def test_what_is_forgotten_is_freed_one_by_one_and_before_more_is_forgotten() -> None:
    class Value:
        pass

    alive: weakref.WeakSet[Value] = weakref.WeakSet()
    recent: Recent[int, Value] = Recent(100)
    before = 0
    for key in range(1_000):
        value = Value()
        alive.add(value)
        recent.put(key, value)
        del value
        # One has come, so at most one more than that has gone.
        assert len(alive) >= before
        assert len(alive) <= 150
        before = len(alive)
