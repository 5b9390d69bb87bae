"""The open loop against small servers that are slow on purpose; the generator is the real one, in its own process."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from loadtest.bench.generator import Generator, Spec
from loadtest.bench.latencies import Latencies, latencies_of
from loadtest.bench.machine import CannotBenchError
from loadtest.bench.open_loop import burst_arrivals, poisson_arrivals, replayed, run_open_loop
from loadtest.bench.town import as_replay
from loadtest.bench.wrk import replay_file

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the bench needs Linux"),
]

REQUEST: Final = b"GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n"
ANSWER: Final = b"HTTP/1.1 409 Conflict\r\nContent-Length: 4\r\n\r\nfull"
STALL_SECONDS: Final = 0.2
# A machine that does something else besides may be late by this much, and no more, in a test.
SLACK_MS: Final = 100.0
# The loop's timers count whole milliseconds: one may ring that much before its time.
EARLY_MS: Final = 1.0

# What a server does with the nth request (from 0) of all its connections; None hangs up.
Behaviour = Callable[[int], "float | None"]


class _Server:
    """Answers each request after the delay that its behaviour says."""

    def __init__(self, behaviour: Behaviour, pieces: Sequence[bytes]) -> None:
        self.asked = 0
        self._behaviour = behaviour
        self._pieces = pieces

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                number, self.asked = self.asked, self.asked + 1
                delay_seconds = self._behaviour(number)
                if delay_seconds is None:
                    return
                await asyncio.sleep(delay_seconds)
                for piece in self._pieces:
                    writer.write(piece)
                    await writer.drain()
                    if len(self._pieces) > 1:
                        await asyncio.sleep(0.005)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            # The generator has gone, or the test is over.
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(behaviour: Behaviour, pieces: Sequence[bytes] = (ANSWER,)) -> AsyncGenerator[str]:
    server = await asyncio.start_server(_Server(behaviour, pieces).serve, "127.0.0.1", 0, backlog=512)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def measured(address: str, arrivals: Sequence[float], *, connections: int = 8, most: int = 64) -> Latencies:
    async with replay_file([REQUEST]) as replay:
        return await run_open_loop(
            address,
            replay,
            arrivals,
            connections=connections,
            connections_max=most,
            patience_seconds=2.0,
            core=None,
        )


def every(seconds: float, count: int) -> list[float]:
    return [number * seconds for number in range(count)]


async def test_a_latency_is_as_long_as_the_server_takes() -> None:
    async with serving(lambda _: 0.05) as address:
        latencies = await measured(address, every(0.01, 50))
    assert (latencies.arrivals, latencies.lost, latencies.statuses) == (50, 0, {409: 50})
    assert 50 - EARLY_MS <= latencies.all.p50_ms <= 50 + SLACK_MS
    assert latencies.all.last_ms >= 49 * 10 + 50 - EARLY_MS


async def test_a_server_that_stands_still_is_felt_by_all_who_arrive_meanwhile() -> None:
    # One connection, so that whoever is behind the stall cannot be sent: counted from the sending, or asked by a
    # closed loop, one of them would have waited and all the others not at all.
    async with serving(lambda number: STALL_SECONDS if number == 10 else 0.0) as address:
        latencies = await measured(address, every(0.01, 60), connections=1, most=1)
    assert latencies.lost == 0
    # Twenty arrive in 200 ms, and wait for 190, 180, 170, … ms; a server that catches up at once leaves no others.
    assert latencies.all.max_ms >= STALL_SECONDS * 1e3 - EARLY_MS
    ordered = sorted(slow.latency_ms for slow in latencies.slowest)
    assert len(ordered) == 20
    # The twentieth longest would be quick if the wait before the sending did not count.
    assert sum(latency_ms >= 50 for latency_ms in ordered) >= 15


async def test_arrivals_do_not_wait_for_those_before_them_while_there_are_connections() -> None:
    async with serving(lambda number: STALL_SECONDS if number == 10 else 0.0) as address:
        latencies = await measured(address, every(0.01, 60))
    assert latencies.all.max_ms >= STALL_SECONDS * 1e3 - EARLY_MS
    assert latencies.all.p50_ms < STALL_SECONDS * 1e3 / 2


async def test_a_connection_is_opened_for_whoever_finds_all_of_them_busy() -> None:
    async with serving(lambda _: 0.1) as address:
        latencies = await measured(address, [0.0] * 30, connections=2, most=30)
    assert latencies.connections == 30
    # One after the other, on two connections, half of them would wait for 800 ms and more.
    assert latencies.all.p50_ms <= 200 + SLACK_MS


async def test_an_answer_that_comes_in_pieces_is_timed_to_its_last_byte() -> None:
    pieces = [ANSWER[:7], ANSWER[7:40], ANSWER[40:-2], ANSWER[-2:]]
    async with serving(lambda _: 0.0, pieces) as address:
        latencies = await measured(address, every(0.02, 20))
    assert latencies.statuses == {409: 20}
    assert latencies.all.p50_ms >= 15 - 3 * EARLY_MS


async def test_lost_answers_are_counted_and_have_no_latency() -> None:
    async with serving(lambda number: None if number % 4 == 3 else 0.0) as address:
        latencies = await measured(address, every(0.01, 40))
    assert latencies.lost == 10
    assert latencies.statuses == {409: 30}
    assert latencies.all.count == 30


async def test_what_is_not_answered_in_time_is_lost() -> None:
    async with serving(lambda number: 30.0 if number == 5 else 0.0) as address:
        latencies = await measured(address, every(0.01, 20))
    assert (latencies.lost, latencies.all.count) == (1, 19)


async def test_a_server_that_is_not_there_is_no_measurement() -> None:
    async with serving(lambda _: 0.0) as address:
        pass
    with pytest.raises(CannotBenchError, match="open loop"):
        await measured(address, [0.0])


async def test_a_generator_that_is_late_says_so() -> None:
    def stand_still(number: int) -> float:
        if number == 10:
            # The generator runs in this process here, so it stands still with its server.
            time.sleep(STALL_SECONDS)
        return 0.0

    async with serving(stand_still) as address:
        port = int(address.rpartition(":")[2])
        spec = Spec("127.0.0.1", port, "", b"", connections=4, connections_max=4, patience_seconds=2.0, core=None)
        latencies = await Generator(spec, [REQUEST], every(0.01, 50)).run()
    assert latencies.late_max_ms >= STALL_SECONDS * 1e3 / 2
    assert latencies.fault is not None
    assert "late" in latencies.fault


def test_a_little_lateness_beside_a_long_wait_is_no_fault() -> None:
    def run(*, late_seconds: float, latency_seconds: float) -> Latencies:
        return latencies_of(
            [0.0, 1.0],
            answered_seconds=[latency_seconds, 1 + latency_seconds],
            late_seconds=[late_seconds] * 2,
            statuses=[201, 409],
            started_seconds=0.0,
            connections=1,
        )

    assert run(late_seconds=0.0004, latency_seconds=0.0005).fault is None
    assert run(late_seconds=0.001, latency_seconds=0.006).fault is None
    assert run(late_seconds=0.002, latency_seconds=0.006).fault is not None
    # A queue of the generator's own makes long latencies, too.
    assert run(late_seconds=0.1, latency_seconds=0.6).fault is not None


def test_quantiles_are_told_by_status_and_the_curve_ends_at_what_was_seen() -> None:
    latencies = latencies_of(
        [0.0] * 1000,
        answered_seconds=[number / 1000 for number in range(1, 1001)],
        late_seconds=[0.0] * 1000,
        statuses=[201] * 100 + [409] * 900,
        started_seconds=0.0,
        connections=1,
    )
    assert latencies.statuses == {201: 100, 409: 900}
    assert latencies.by_status[201].max_ms == pytest.approx(100)
    assert latencies.all.p50_ms == pytest.approx(500)
    assert latencies.all.p99_ms == pytest.approx(990)
    assert latencies.all.curve[-1] == (3.0, pytest.approx(999))
    assert latencies.slowest[0].latency_ms == pytest.approx(1000)


def test_the_same_seed_gives_the_same_schedule() -> None:
    arrivals = poisson_arrivals(1_000, 2, seed=1)
    assert arrivals == poisson_arrivals(1_000, 2, seed=1) == sorted(arrivals)
    assert 1_800 < len(arrivals) < 2_200
    crowd = burst_arrivals(5_000, mean_seconds=0.1, within_seconds=1.0, seed=1)
    assert len(crowd) == 5_000
    assert crowd == sorted(crowd)
    assert 0.25 < crowd[int(0.95 * len(crowd))] < 0.35
    assert crowd[-1] <= 1.0


def test_a_schedule_is_read_from_a_file_as_it_was_written(tmp_path: Path) -> None:

    requests = [REQUEST, b"", REQUEST * 100]
    (tmp_path / "replay").write_bytes(as_replay(requests))
    assert replayed(tmp_path / "replay") == requests
