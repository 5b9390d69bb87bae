"""Keeps one account's phone from asking for ever: so many requests to the gate in a second, counted in this worker.

Counted by account and not by address, since families and schools share one. Nothing is asked of Redis for it: a flood
must cost less than an answer. With several workers an account may get as many times the limit.
"""

from typing import Final

from app.core.problems import RateLimited, jittered_ms
from app.core.web.headers import standing_headers

_WINDOW_SECONDS: Final = 1
_WINDOW_MS: Final = 1_000 * _WINDOW_SECONDS


class AccountLimit:
    """Counts the requests of each account in windows of one second; what was counted is forgotten with its window."""

    def __init__(self, name: str, requests_per_second: int) -> None:
        self._name = name
        self._limit = requests_per_second
        self._window = 0
        self._counts: dict[bytes, int] = {}

    def count(self, account: bytes, now_ms: int) -> None:
        """Count one request at this moment. Raises `RateLimited` beyond the limit, until the window is over."""
        window = now_ms // _WINDOW_MS
        if window != self._window:
            self._window = window
            self._counts.clear()
        counted = self._counts.get(account, 0) + 1
        self._counts[account] = counted
        if counted > self._limit:
            raise RateLimited(
                retry_after_ms=jittered_ms(_WINDOW_MS - now_ms % _WINDOW_MS),
                headers=standing_headers(self._name, self._limit, _WINDOW_SECONDS, remaining=0, reset_seconds=1),
            )
