"""What is done in a thread is done to its end, whoever waits for it."""

import asyncio
import threading

import pytest

from loadtest.threads import in_thread

pytestmark = pytest.mark.anyio


async def test_who_is_cancelled_hears_of_it_when_the_thread_has_ended_and_what_it_made_is_undone() -> None:
    begun, may_end = threading.Event(), threading.Event()
    undone: list[str] = []

    def work() -> str:
        begun.set()
        assert may_end.wait(10)
        return "made"

    task = asyncio.create_task(in_thread(work, undo=undone.append))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=0.1)
    assert not done
    assert not undone
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == ["made"]


async def test_what_fails_in_a_thread_is_raised() -> None:
    def work() -> None:
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        await in_thread(work)
