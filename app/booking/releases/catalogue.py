"""Keeps rendered catalogue answers for a moment: thousands of phones read the same release before it opens.

Whoever asks first renders, everybody else who asks meanwhile waits for the same answer. What this worker changes is
forgotten at once; what another worker changes is seen after `catalogue_age_ms` at the latest.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.core.etags import etag_of

Render = Callable[[AsyncSession], Awaitable[bytes | None]]


class Answer(NamedTuple):
    """A body and its entity tag."""

    body: bytes
    etag: str


class _Kept(NamedTuple):
    # Monotonic, from before the first statement: nothing in the answer is older.
    asked_at_seconds: float
    answer: asyncio.Task[Answer | None]


class Catalogue:
    """The answers that one worker remembers, at most `answers_limit`, none older than `age_ms`."""

    def __init__(self, engine: AsyncEngine, *, age_ms: int, answers_limit: int) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._age_seconds = age_ms / 1000
        self._answers_limit = answers_limit
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    async def answer(self, key: Hashable, render: Render) -> Answer | None:
        """Return the answer for `key`, by `render` unless a recent one is kept. None says that nothing is there."""
        now_seconds = time.monotonic()
        kept = self._kept.get(key)
        if kept is None or now_seconds - kept.asked_at_seconds >= self._age_seconds:
            kept = _Kept(now_seconds, asyncio.create_task(self._render(render), name="catalogue"))
            self._kept[key] = kept
            self._kept.move_to_end(key)
            if len(self._kept) > self._answers_limit:
                self._kept.popitem(last=False)
        try:
            # Shielded: a phone that hangs up must not take the answer from the others that wait for it.
            return await asyncio.shield(kept.answer)
        except Exception:
            if self._kept.get(key) is kept:
                del self._kept[key]
            raise

    def forget(self) -> None:
        """Forget everything: a change of one release shows in its own answer and in every list."""
        self._kept.clear()

    async def _render(self, render: Render) -> Answer | None:
        async with AsyncSession(self._engine, expire_on_commit=False, autoflush=False) as db:
            body = await render(db)
        return None if body is None else Answer(body, etag_of(body))
