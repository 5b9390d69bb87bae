"""More of them than can be served, and phones that take their time."""

import asyncio
import random
import sys
from typing import Final

import msgspec

from loadtest.bench.town import BenchRelease, claim_requests, poll_requests
from loadtest.bench.wrk import replay_file
from tests.chaos.faults.strikes import Fault, Play, Strike
from tests.chaos.stand import Stand
from tests.chaos.storm import FLOOD_PHONES, RETRYING_PHONES, SILENT_PHONES, SLOW_PHONES, Heard

_STORM_SECONDS: Final = 4.0
_STRANGERS: Final = 10_000
QUEUE_LIMIT: Final = 200


def storm(kind: str) -> Play:
    """Return what lets a storm of this kind loose, in a process of its own."""

    async def play(stand: Stand, rng: random.Random, strike: Strike) -> None:
        made = stand.made
        # Of the crowd's pools, so that the probes' places are left to them.
        release = BenchRelease(made.release_id, made.pools[:-1], sum(made.capacities[:-1]))
        if kind == "slow_readers":
            requests = poll_requests(release)
        else:
            signer, seed = stand.keys.passes, rng.getrandbits(32)
            requests = await asyncio.to_thread(claim_requests, signer, release, count=_STRANGERS, seed=seed)
        async with replay_file(requests) as path:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.chaos.storm", kind, stand.address, str(_STORM_SECONDS), str(path)),
                stdout=asyncio.subprocess.PIPE,
            )
            strike.begins()
            try:
                said, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            strike.ends()
        strike.storm = msgspec.json.decode(said, type=Heard)

    return play


STORMS: Final = (
    Fault("flood", f"{FLOOD_PHONES:,} strangers claim without a pause", storm("flood")),
    Fault(
        "flood_refused",
        f"the same, where each worker lets {QUEUE_LIMIT} wait and sends the others away",
        storm("flood"),
        settings={"ADMISSION_QUEUE_LIMIT": str(QUEUE_LIMIT)},
    ),
    Fault("retry_storm", f"{RETRYING_PHONES:,} phones send the same claim without a pause", storm("retries")),
    Fault("reconnect_storm", "phones call, ask, hang up and call again, without a pause", storm("reconnects")),
    Fault("silent_lines", f"{SILENT_PHONES:,} connections are held open and say nothing", storm("silence")),
    Fault("slow_senders", f"{SLOW_PHONES:,} phones send their claims a byte at a time", storm("slow_senders")),
    Fault("slow_readers", f"{SLOW_PHONES:,} phones ask and ask, and read no answer", storm("slow_readers")),
)
