"""Ends background tasks for sure."""

import asyncio
from typing import Final

# Between two cancellations; a task that takes notice of the first ends well before.
AGAIN_AFTER_SECONDS: Final = 0.05


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task that runs for ever and wait for its end; what it raised besides is passed on.

    It is cancelled again and again: redis-py 8.1 loses a cancellation that arrives while a command is being sent, so
    a loop that asks Redis would otherwise go on, and whoever waits for its end would wait for ever. The task has to
    pause for longer than `AGAIN_AFTER_SECONDS` at times, as a loop that is worth cancelling does.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=AGAIN_AFTER_SECONDS)
    if not task.cancelled():
        task.result()
