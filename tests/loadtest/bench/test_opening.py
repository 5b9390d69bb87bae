"""A rehearsal that does not end as it is told."""

import asyncio
import signal
import sys
from typing import Final

import pytest

from loadtest.bench.opening import end_rehearsal

DEAF: Final = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.anyio
async def test_a_rehearsal_that_does_not_end_when_told_is_killed() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DEAF, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"deaf\n"
    await end_rehearsal(process, within_seconds=0.2)
    assert process.returncode == -signal.SIGKILL
