"""The opening itself, all of it on this machine: 5,000 parents, 14 sessions, 300 places. And how soon a server serves.

The crowd is the one of `clocktower rehearse`, with its double taps, lost replies and second choices; it shares the two
cores with everything that it measures. Each rehearsal is checked against PostgreSQL: one with a broken promise is no
measurement.
"""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import httpx2
import msgspec

from app.cli.own_server import OwnServer
from app.cli.refusal import Refusal
from app.core.settings import ENVIRONMENT_PREFIX
from loadtest.bench.machine import CannotBenchError
from loadtest.bench.results import Row, Spread, value_at_most
from loadtest.threads import in_thread

_PARENTS: Final = 5_000
# Of P6 and P7, in seconds.
LAST_PLACE: Final = value_at_most(1.0)
ANSWERED: Final = value_at_most(1.5)
_REHEARSAL_SECONDS_MAX: Final = 300.0
_STOP_SECONDS_MAX: Final = 30.0


class _Answered(msgspec.Struct):
    p99_ms: float


class _Verdict(msgspec.Struct):
    holds: bool
    seconds_to_last_place: float | None
    parents_answered: _Answered


async def opening(*, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Return the rows P6 and P7. Raises `CannotBenchError`."""
    last_place: list[float] = []
    answered: list[float] = []
    for number in range(rounds):
        say(f"Opening {number + 1} of {rounds}: {_PARENTS:,} parents")
        verdict = await _rehearse(seed=number + 1)
        if not verdict.holds or verdict.seconds_to_last_place is None:
            raise CannotBenchError(
                f"The rehearsal with seed {number + 1} broke a promise: clocktower rehearse --embedded "
                f"--parents {_PARENTS} --seed {number + 1} shows which."
            )
        last_place.append(verdict.seconds_to_last_place)
        answered.append(verdict.parents_answered.p99_ms / 1000)
        say(f"  last place after {last_place[-1]:.2f} s, everybody answered p99 {answered[-1]:.2f} s")
    what = f"opening: {_PARENTS:,} parents, 14 sessions, 300 places, all on two cores"
    return [
        Row("P6", f"{what}: last place taken after", "s", Spread.of(last_place), LAST_PLACE),
        Row("P7", f"{what}: every parent answered, p99", "s", Spread.of(answered), ANSWERED),
    ]


async def _rehearse(*, seed: int) -> _Verdict:
    with tempfile.TemporaryDirectory(prefix="clocktower-bench-") as directory:
        report = Path(directory) / "verdict.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli", "rehearse", "--embedded"),
            *("--parents", str(_PARENTS), "--seed", str(seed), "--json", str(report)),
            # The opening comes when everybody has a pass and a line, and no later.
            *("--seconds-before", "0"),
            env=_clean_environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_REHEARSAL_SECONDS_MAX):
                said, _ = await process.communicate()
        except TimeoutError:
            raise CannotBenchError(
                f"A rehearsal of {_PARENTS:,} parents was not over after {_REHEARSAL_SECONDS_MAX:.0f} s: this machine "
                "is busy with something else, or too slow to measure anything on."
            ) from None
        finally:
            if process.returncode is None:
                await end_rehearsal(process)
        if not report.exists():
            raise CannotBenchError(f"The rehearsal did not take place: {said.decode(errors='replace')[-600:]}")
        return msgspec.json.decode(report.read_bytes(), type=_Verdict)


async def end_rehearsal(process: asyncio.subprocess.Process, *, within_seconds: float = _STOP_SECONDS_MAX) -> None:
    """End a rehearsal, with its servers and engines. What it has still to say is read, or it could not end."""
    process.terminate()
    try:
        async with asyncio.timeout(within_seconds):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()


def _clean_environment() -> Mapping[str, str]:
    """Return this environment without settings of the service: its engines are to be its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}


async def start_up(*, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Return the rows P12: from the command to the first answer, on fresh data and on data that is there."""
    fresh: list[float] = []
    again: list[float] = []
    for number in range(rounds):
        data_dir = Path(tempfile.mkdtemp(prefix="clocktower-bench-"))
        try:
            fresh.append(await _first_answer_seconds(data_dir))
            again.append(await _first_answer_seconds(data_dir))
        finally:
            shutil.rmtree(data_dir, ignore_errors=True)
        say(f"Start {number + 1} of {rounds}: fresh {fresh[-1]:.1f} s, existing {again[-1]:.1f} s")
    what = "clocktower serve with embedded engines: first answer"
    return [
        Row("P12", f"{what}, existing data", "s", Spread.of(again), value_at_most(4)),
        Row("P12b", f"{what}, fresh data", "s", Spread.of(fresh), value_at_most(10)),
    ]


async def _first_answer_seconds(data_dir: Path) -> float:
    began_at = time.perf_counter()
    try:
        start = partial(OwnServer.start, data_dir / "data", port=0, workers=1, log_path=data_dir / "serve.log")
        server = await in_thread(start, undo=OwnServer.stop)
    except Refusal as refusal:
        raise CannotBenchError(f"clocktower serve did not start: {refusal}") from refusal
    try:
        async with httpx2.AsyncClient(base_url=server.address) as client:
            answer = await client.get("/health/ready")
        if not answer.is_success:
            raise CannotBenchError(f"clocktower serve said that it serves, and then: {answer.text}")
        return time.perf_counter() - began_at
    finally:
        await asyncio.to_thread(server.stop)
