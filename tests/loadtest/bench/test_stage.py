"""The stage of the bench: what was started on it goes with it, also when it is not finished yet."""

import asyncio
from pathlib import Path

import pytest

from app.core.embedded.directories import Layout, OwnerLock
from loadtest.bench.stage import stage

pytestmark = pytest.mark.anyio


async def test_engines_that_were_only_starting_are_stopped_before_anybody_hears_of_it(tmp_path: Path) -> None:
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def say(_sentence: str) -> None:
        loop.call_soon_threadsafe(begun.set)

    async def enter() -> None:
        async with stage(tmp_path, say):
            pass

    entering = asyncio.create_task(enter())
    await begun.wait()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    # The lock goes last: whoever gets it finds no engine, and no sockets.
    layout = Layout(tmp_path / "engines")
    OwnerLock(layout).release()
    assert not layout.run_path.is_symlink()
    assert not layout.run_path.exists()
