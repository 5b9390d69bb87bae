"""A PostgreSQL that says nothing at all: everybody who waits for it gives up in time, says so, and goes on with it."""

import time
from collections.abc import Callable, Generator
from typing import TypeVar

import httpx2
import pytest

from tests.serving.servers import Server, await_true, clocktower
from tests.serving.test_health import silent

_T = TypeVar("_T")

# With one second and a half for a statement (half a second, and one more), half a second to connect, and the rest for a
# machine that is busy.
_ANSWER_SECONDS_MAX = 5.0
_READY_SECONDS_MAX = 4.0
# A start of Python, half a second or a default's five to connect, and the rest for a machine that is busy.
_COMMAND_SECONDS_MAX = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    running = Server.start(
        tmp_path_factory.mktemp("silent") / "data",
        env={
            "CLOCKTOWER_DATABASE_STATEMENT_TIMEOUT_MS": "500",
            "CLOCKTOWER_DATABASE_LOCK_TIMEOUT_MS": "500",
            "CLOCKTOWER_COMMIT_TIMEOUT_MS": "1000",
            "CLOCKTOWER_SWEEP_INTERVAL_MS": "100",
        },
    )
    yield running
    running.end()


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    began_at = time.monotonic()
    return work(), time.monotonic() - began_at


def test_whoever_asks_is_sent_away_in_time_and_served_again(server: Server) -> None:
    path = f"{server.address}/v1/stations"
    # Several connections are in the pool by then, and each of them goes silent.
    for _ in range(3):
        httpx2.get(path).raise_for_status()
    with silent(server, ["postgresql"]):
        for _ in range(4):
            answer, seconds = _timed(lambda: httpx2.get(path, timeout=60))
            assert (answer.status_code, seconds < _ANSWER_SECONDS_MAX) == (503, True), seconds
            assert int(answer.headers["retry-after"]) >= 1
        ready, seconds = _timed(lambda: httpx2.get(f"{server.address}/health/ready", timeout=60))
        assert (ready.status_code, seconds < _READY_SECONDS_MAX) == (503, True), seconds
    await_true(server.is_ready)
    assert httpx2.get(path).status_code == 200


def test_the_background_worker_notices_says_so_and_sweeps_again(server: Server) -> None:
    def told(event: str) -> int:
        return server.log_path.read_text().count(f'"event": "{event}"')

    def is_well() -> bool:
        return told("worker_trouble") == told("worker_trouble_over")

    await_true(is_well)
    with silent(server, ["postgresql"]):
        await_true(lambda: not is_well())
    await_true(is_well)


@pytest.mark.parametrize("name", ["doctor", "reconcile"])
def test_a_command_does_not_wait_for_long(server: Server, name: str) -> None:
    with silent(server, ["postgresql"]):
        done, seconds = _timed(lambda: clocktower(name, "--data-dir", server.data_dir))
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode in {1, 2}
    assert "PostgreSQL at " in said
    assert "cannot be used" in said
    assert seconds < _COMMAND_SECONDS_MAX
    await_true(server.is_ready)


def test_of_embedded_engines_the_doctor_names_no_variable(server: Server) -> None:
    with silent(server, ["postgresql", "redis"]):
        done = clocktower("doctor", "--data-dir", server.data_dir)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert said.count("→ `clocktower serve` starts it again") == 2, said
    assert "correct CLOCKTOWER_" not in said
    await_true(server.is_ready)
