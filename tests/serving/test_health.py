"""Live answers as long as the process can; ready names whichever engine is silent, and comes back with it."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import httpx2
import psutil
import pytest

from tests.serving.servers import Server, await_true, engines_in

# A probe gives up on an engine after one and a half seconds and hangs up within a quarter of one; the rest is for a
# machine that is busy.
ANSWER_SECONDS_MAX = 3.0
PROGRAMS = {"postgresql": "postgres", "redis": "valkey"}


@contextmanager
def silent(server: Server, engines: Sequence[str]) -> Generator[None]:
    """Freeze every process of these engines: their sockets still take connections, and nobody answers."""
    words = [PROGRAMS[engine] for engine in engines]
    frozen = [process for process in engines_in(server.data_dir) if any(word in process.name() for word in words)]
    assert len(frozen) >= len(engines)
    for process in frozen:
        process.suspend()
    try:
        yield
    finally:
        for process in frozen:
            try:
                process.resume()
            except psutil.NoSuchProcess:
                continue


@pytest.mark.parametrize("engines", [["postgresql"], ["redis"], ["postgresql", "redis"]], ids="+".join)
def test_ready_names_the_engine_that_is_silent_and_live_asks_nobody(server: Server, engines: list[str]) -> None:
    await_true(server.is_ready)
    with silent(server, engines):
        began = time.monotonic()
        ready = httpx2.get(server.address + "/health/ready", timeout=60)
        assert time.monotonic() - began < ANSWER_SECONDS_MAX
        live = httpx2.get(server.address + "/health/live", timeout=5)
    assert (ready.status_code, ready.json()["code"], ready.json()["down"]) == (503, "unavailable", engines)
    assert int(ready.headers["retry-after"]) >= 1
    assert live.status_code == 200
    await_true(server.is_ready)
