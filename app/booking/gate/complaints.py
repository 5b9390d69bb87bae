"""Keeps the log readable in an outage: the same complaint is made once in a few seconds, not at each try."""

from collections.abc import Hashable
from typing import Final

WINDOW_SECONDS: Final = 5.0
# Different complaints in one window: releases that somebody made up must not fill the log either.
LIMIT: Final = 20


class Complaints:
    """Remembers what was said in this window of a few seconds; it is forgotten as a whole with its window."""

    def __init__(self) -> None:
        self._until_seconds = 0.0
        self._said: set[Hashable] = set()

    def is_new(self, complaint: Hashable, now_seconds: float) -> bool:
        """Tell whether this is still to be said in this window, and count it as said."""
        if now_seconds >= self._until_seconds:
            self._until_seconds = now_seconds + WINDOW_SECONDS
            self._said.clear()
        if complaint in self._said or len(self._said) >= LIMIT:
            return False
        self._said.add(complaint)
        return True
