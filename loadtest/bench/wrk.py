"""Runs wrk, the closed-loop load generator in C: so many connections, each asking again as soon as it is answered.

A closed loop finds out how much a server can do. It says nothing about waiting, since a slow answer also holds back
the next question; latencies come from `open_loop`.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from loadtest.bench.machine import OTHER_CORE, CannotBenchError
from loadtest.bench.town import as_replay

_REPORT: Final = "REPORT "
# Past the end of a run, wrk closes its connections and counts.
_GRACE_SECONDS: Final = 20.0
# What goes wrong with apt-get stands at the end of what it says.
_TOLD_MAX: Final = 600
_HOW_TO_GET_IT: Final = "on Debian or Ubuntu: apt-get install wrk; elsewhere from your system's packages"


class LoadReport(msgspec.Struct, frozen=True):
    """What wrk counted. Latencies are those of a closed loop: good for comparing two runs, not for telling a wait."""

    answers: int
    duration_us: int
    bytes: int
    not_2xx: int
    lost: int
    p50_us: int
    p99_us: int

    @property
    def per_second(self) -> float:
        """Return answers in a second."""
        return self.answers / (self.duration_us / 1e6)

    @property
    def bytes_each(self) -> float:
        """Return the length of an answer, head and body, on average."""
        return self.bytes / self.answers if self.answers else 0.0


async def require_wrk(say: Callable[[str], None]) -> str:
    """Return wrk's path, installing it where that needs no question. Raises `CannotBenchError`."""
    if found := shutil.which("wrk"):
        return found
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise CannotBenchError(f"The load generator wrk is missing: {_HOW_TO_GET_IT}.")
    say("Installing wrk with apt-get")
    told = ""
    # An index that is not quite new may do: what counts is whether the program is there in the end.
    for arguments in (("update",), ("install", "--yes", "--no-install-recommends", "wrk")):
        process = await asyncio.create_subprocess_exec(
            *(apt, "-qq", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        told += said.decode(errors="replace")
    if found := shutil.which("wrk"):
        return found
    raise CannotBenchError(
        f"apt-get could not install wrk; install it by hand ({_HOW_TO_GET_IT}). It said: {told.strip()[-_TOLD_MAX:]}"
    )


@asynccontextmanager
async def replay_file(requests: Sequence[bytes]) -> AsyncGenerator[Path]:
    """Keep requests in a file for wrk as long as the context lasts."""
    with tempfile.NamedTemporaryFile(prefix="clocktower-bench-", suffix=".requests") as file:
        file.write(as_replay(requests))
        file.flush()
        yield Path(file.name)


async def run_wrk(
    program: str,
    address: str,
    replay: Path,
    *,
    seconds: float,
    connections: int,
    once: bool = False,
) -> LoadReport:
    """Send the requests of a file for so long; with `once`, until each was sent, if that is sooner.

    Raises `CannotBenchError` when wrk fails.
    """
    script = str(resources.files(__package__ or "").joinpath("replay.lua"))
    whole_seconds = max(round(seconds), 1)
    process = await asyncio.create_subprocess_exec(
        *("taskset", "--cpu-list", str(OTHER_CORE), program),
        *("--threads", "1", "--connections", str(connections), "--duration", f"{whole_seconds}s"),
        *("--timeout", "20s", "--script", script, address, "--", str(replay), "once" if once else "again"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(whole_seconds + _GRACE_SECONDS):
            said, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    for line in said.decode(errors="replace").splitlines():
        if line.startswith(_REPORT):
            return msgspec.json.decode(line.removeprefix(_REPORT), type=LoadReport)
    raise CannotBenchError(f"wrk failed: {said.decode(errors='replace').strip() or process.returncode}")
