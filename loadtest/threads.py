"""Work that blocks, done in a thread of its own and never left behind half done."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T], *, undo: Callable[[_T], object] | None = None) -> _T:
    """Do something in a thread, to its end, and return what came of it.

    Who is cancelled meanwhile hears of it when the thread has ended, and not before: otherwise it could start a process
    of which nobody knows any more. `undo` takes back what came of it then, in a thread as well.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if task.exception() is None and undo is not None:
            await asyncio.to_thread(undo, task.result())
        raise
