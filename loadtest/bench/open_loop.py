"""An open-loop load generator: requests leave when a schedule says so, whether or not the ones before are answered.

A closed loop asks again only when it has been answered, so a server that stands still for a second holds back the
very questions that would have met it: "coordinated omission" (Gil Tene, "How NOT to Measure Latency"). Here a latency
runs from the moment for which the arrival was scheduled to the last byte of its answer, and whoever arrives while a
server stands still is seen to wait.

The generator is a process of its own on the second core, `python -m loadtest.bench.open_loop SPEC`. How late it was
itself is counted as well, so that nobody blames a server for the generator's hiccups (see `Latencies.fault`).
"""

import array
import asyncio
import gc
import os
import random
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import uvloop

from loadtest.bench.generator import DOUBLES, Generator, Spec
from loadtest.bench.latencies import Latencies
from loadtest.bench.machine import OTHER_CORE, CannotBenchError
from loadtest.http1 import raise_file_limit

# Past the schedule and the patience, the process reads its files, connects and counts.
_GRACE_SECONDS: Final = 30.0


def poisson_arrivals(per_second: float, seconds: float, *, seed: int) -> list[float]:
    """Return when each arrives, in seconds from the start, of many who know nothing of one another."""
    drawn = random.Random(seed)
    arrivals: list[float] = []
    at = drawn.expovariate(per_second)
    while at < seconds:
        arrivals.append(at)
        at += drawn.expovariate(per_second)
    return arrivals


def burst_arrivals(count: int, *, mean_seconds: float, within_seconds: float, seed: int) -> list[float]:
    """Return when each of a crowd arrives that was waiting for the second: most at once, then fewer and fewer."""
    drawn = random.Random(seed)
    return sorted(min(drawn.expovariate(1 / mean_seconds), within_seconds) for _ in range(count))


async def run_open_loop(
    address: str,
    replay: Path,
    arrivals: Sequence[float],
    *,
    connections: int,
    connections_max: int = 2_000,
    patience_seconds: float = 10.0,
    core: int | None = OTHER_CORE,
) -> Latencies:
    """Send a request of a replay file (see `wrk.replay_file`) at each of these times, in order, from the first again.

    `arrivals` are seconds from the start, ascending. So many connections stand before it, as phones keep theirs; more
    are opened while all are busy, up to the bound, past which an arrival waits for one, and its waiting counts. What
    is not answered `patience_seconds` after the last arrival is lost. Raises `CannotBenchError` when the generator
    fails.
    """
    place = urlsplit(address)
    with tempfile.NamedTemporaryFile(prefix="clocktower-bench-", suffix=".spec") as file:
        spec = Spec(
            host=place.hostname or "127.0.0.1",
            port=place.port or 80,
            replay=str(replay),
            arrivals=array.array(DOUBLES, arrivals).tobytes(),
            connections=connections,
            connections_max=max(connections, connections_max),
            patience_seconds=patience_seconds,
            core=core,
        )
        file.write(msgspec.msgpack.encode(spec))
        file.flush()
        said = await _said_by_process(file.name, arrivals[-1] + patience_seconds + _GRACE_SECONDS)
    return msgspec.json.decode(said, type=Latencies)


async def _said_by_process(spec_path: str, limit_seconds: float) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.bench.open_loop", spec_path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(limit_seconds):
            said, complained = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise CannotBenchError(f"The open loop failed: {complained.decode(errors='replace').strip()[-600:]}")
    return said


def replayed(path: Path) -> list[bytes]:
    """Return the requests of a replay file (see `town.as_replay`)."""
    packed = path.read_bytes()
    requests: list[bytes] = []
    at = 0
    while at < len(packed):
        (length,) = struct.unpack_from("<I", packed, at)
        requests.append(packed[at + 4 : at + 4 + length])
        at += 4 + length
    return requests


async def _run(spec: Spec, requests: Sequence[bytes]) -> Latencies:
    return await Generator(spec, requests, array.array(DOUBLES, spec.arrivals)).run()


def main() -> None:
    """Run the schedule of a spec file, and print what came of it as one line of JSON."""
    spec = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Spec)
    requests = replayed(Path(spec.replay))
    if spec.core is not None:
        os.sched_setaffinity(0, {spec.core})
    raise_file_limit(spec.connections_max)
    # What a request makes is freed with its answer, and the process is gone with its last.
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.write(msgspec.json.encode(runner.run(_run(spec, requests))).decode() + "\n")


if __name__ == "__main__":
    main()
