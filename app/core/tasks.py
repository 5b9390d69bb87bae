"""Tasks in the background: started so that somebody holds them, and ended for sure."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import structlog

from app.core.problems import Problem

log = structlog.stdlib.get_logger(__name__)
_T = TypeVar("_T")

# Between two cancellations; a task that takes notice of the first ends well before.
AGAIN_AFTER_SECONDS: Final = 0.05


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task that runs for ever and wait for its end; what it raised besides is passed on.

    It is cancelled again and again: redis-py 8.1 loses a cancellation that arrives while a command is being sent, and
    `asyncio.wait_for` of Python 3.11, with which asyncpg finds a connection, one that arrives in the turn in which the
    wait is over. A loop that asks either would otherwise go on, and whoever waits for its end would wait for ever. The
    task has to pause at times, as a loop that is worth cancelling does.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=AGAIN_AFTER_SECONDS)
    if not task.cancelled():
        task.result()


class Chores:
    """Small tasks that nobody waits for, or that must outlive whoever waits. What fails is logged, not raised."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start a task and hold it until it is done: asyncio alone would let it be collected halfway."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def end(self) -> None:
        """Cancel what is still under way, again and again as `end_task` does, and wait for its end."""
        while under_way := tuple(self._tasks):
            for task in under_way:
                task.cancel()
            await asyncio.wait(under_way, timeout=AGAIN_AFTER_SECONDS)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # A problem is somebody's answer already.
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Problem):
            log.warning("chore_failed", error=type(error).__name__)
