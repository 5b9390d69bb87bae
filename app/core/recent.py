"""Remembers what came last, within a bound."""

from collections.abc import Hashable
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """At most `limit` values by key; the half of them that was added or asked for last is never forgotten.

    Two generations: when the young one has half the limit, it becomes the old one, and what was old is forgotten as a
    whole. A dict emptied from its front one by one would search its own holes, longer each time.

    To free ten thousand values at once would hold up the loop for milliseconds, so one is freed each time that one is
    added: what was forgotten is gone by the time that more is forgotten.
    """

    __slots__ = ("_forgotten", "_half", "_old", "_young")

    def __init__(self, limit: int) -> None:
        assert limit > 1  # noqa: S101 - each of the two generations has to hold something
        self._half = limit // 2
        self._young: dict[_K, _V] = {}
        self._old: dict[_K, _V] = {}
        self._forgotten: dict[_K, _V] = {}

    def get(self, key: _K) -> _V | None:
        """Return what is remembered under a key, or None."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: _K, value: _V) -> None:
        """Remember a value, which must not be None."""
        if len(self._young) >= self._half:
            self._forgotten, self._old, self._young = self._old, self._young, {}
        self._young[key] = value
        if self._forgotten:
            # From its end, where a dict has no holes.
            self._forgotten.popitem()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
