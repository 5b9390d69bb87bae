"""What a claim costs on one server and on a cluster, in turn: `python -m tests.cluster` (Linux, some 40 s).

One gate in this process puts refused claims, and winners, of several releases through. The processor time of a claim is
what is compared: server (this process) and Redis (all nodes). How many a second is what this machine has cores for.
"""

import asyncio
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg
import psutil
import structlog

from app.booking.gate.desk import Desk
from app.booking.gate.gate import Gate
from app.booking.gate.passes import PassSigner
from app.core.clock import Clock
from app.core.embedded import start_engines
from tests.booking.gate.builders import MadeRelease, Phone, Worker, make_release
from tests.cluster.servers import LOOPBACK, PRIMARIES, Cluster, Valkey, free_ports, until_true
from tests.conftest import make_settings, migrate

_ROUNDS: Final = 5
_RELEASES: Final = 4 * PRIMARIES
_PLACES: Final = 250
_REFUSED: Final = 1_500


class Cost(NamedTuple):
    """Of one kind of claim: how many a second, and microseconds of processor time each."""

    a_second: float
    server_us: float
    redis_us: float


def main() -> None:
    """Measure, and print a table."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with start_engines(directory / "engines", progress=lambda _sentence: None) as engines:
            migrate(engines.database_dsn)
            asyncio.run(_measure(directory, engines.database_dsn))


async def _measure(directory: Path, dsn: str) -> None:
    one = Valkey(directory / "one", free_ports(1)[0], "--save", "")
    (directory / "cluster").mkdir()
    cluster = Cluster(directory / "cluster")
    found: dict[tuple[str, str], list[Cost]] = {}
    try:
        one.start()
        await until_true(lambda: one.ask("PING"))
        await cluster.start()
        sides = [("one server", f"redis://{LOOPBACK}:{one.port}", [one]), ("cluster", cluster.url, cluster.nodes)]
        for number in range(_ROUNDS):
            for side, url, nodes in sides if number % 2 else reversed(sides):
                for kind, cost in (await _round(dsn, url, nodes)).items():
                    found.setdefault((kind, side), []).append(cost)
    finally:
        one.kill()
        cluster.kill()
    for (kind, side), costs in sorted(found.items()):
        middle = [statistics.median(values) for values in zip(*costs, strict=True)]
        words = (
            f"{kind:8} {side:11} {middle[0]:7,.0f} a second, {middle[1]:5.1f} + {middle[2]:4.1f} µs (server + Redis)"
        )
        sys.stdout.write(words + "\n")


async def _round(dsn: str, url: str, nodes: Sequence[Valkey]) -> dict[str, Cost]:
    settings = make_settings(dsn, url, "http://127.0.0.1:9")
    signer = PassSigner(settings.pass_key.get_secret_value())
    gate = await Gate.open(settings, Clock())
    worker = Worker(gate, Desk(gate, signer))
    db = await asyncpg.connect(dsn)
    try:
        releases = [await make_release(db, capacities=(_PLACES,)) for _ in range(_RELEASES)]
        for made in releases:
            await gate.release(made.release_id)
        winners = await _cost(worker, signer, releases, _PLACES, nodes, {201})
        await asyncio.sleep(0.2)
        return {"winners": winners, "refusals": await _cost(worker, signer, releases, _REFUSED, nodes, {409})}
    finally:
        await db.close()
        await gate.close()


async def _cost(
    worker: Worker,
    signer: PassSigner,
    releases: Sequence[MadeRelease],
    each: int,
    nodes: Sequence[Valkey],
    expected: set[int],
) -> Cost:
    claims = [Phone.with_pass(signer, made).claim() for _ in range(each) for made in releases]
    servers = [psutil.Process(node.pid) for node in nodes]
    began_at, server_us, redis_us = time.perf_counter(), _spent_us([psutil.Process(os.getpid())]), _spent_us(servers)
    said = await asyncio.gather(*(worker.desk.answer(claim) for claim in claims))
    seconds = time.perf_counter() - began_at
    server_us = _spent_us([psutil.Process(os.getpid())]) - server_us
    redis_us = _spent_us(servers) - redis_us
    assert {answer.status for answer in said} == expected
    return Cost(len(claims) / seconds, server_us / len(claims), redis_us / len(claims))


def _spent_us(processes: Sequence[psutil.Process]) -> float:
    """Return the processor time of these processes, by the kernel's own accounting of their threads."""
    spent_ns = 0
    for process in processes:
        for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            spent_ns += int(path.read_text().split()[0])
    return spent_ns / 1_000


if __name__ == "__main__":
    main()
