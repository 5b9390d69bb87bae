import asyncio

import pytest
from redis.asyncio import Redis

from app.core.tasks import AGAIN_AFTER_SECONDS, Chores, end_task

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("steps", range(12))
async def test_a_loop_that_asks_redis_ends_wherever_it_is_cancelled(redis: Redis, steps: int) -> None:
    async def ask_for_ever() -> None:
        while True:
            await redis.ping()  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues] - sync and async in one type
            # As every such loop pauses: a cancellation that is lost in the command is followed by one that is not.
            await asyncio.sleep(2 * AGAIN_AFTER_SECONDS)

    task = asyncio.create_task(ask_for_ever())
    for _ in range(steps):
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end_task(task)
    assert task.cancelled()


async def test_what_a_task_raised_is_passed_on() -> None:
    async def fail() -> None:
        raise RuntimeError("info")

    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    with pytest.raises(RuntimeError, match="info"):
        await end_task(task)


async def test_a_chore_that_loses_a_cancellation_ends_at_the_next() -> None:
    lost = 0

    async def go_on_for_ever() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(2 * AGAIN_AFTER_SECONDS)
            except asyncio.CancelledError:
                if lost:
                    raise
                lost += 1

    chores = Chores()
    chores.start(go_on_for_ever())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await chores.end()
    assert lost == 1
