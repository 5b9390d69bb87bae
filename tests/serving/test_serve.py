import asyncio
import contextlib
import itertools
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx2
import psutil
import pytest

from app.cli.web import CONNECTIONS_A_TURN
from app.core.embedded import Engines
from app.wechat.fake.demo import DEMO_APP_ID, DEMO_APP_SECRET
from tests.conftest import dsn_of
from tests.serving.conftest import Serve
from tests.serving.servers import (
    REFUSED,
    ROOT,
    Server,
    await_true,
    clean_environment,
    clocktower,
    engines_in,
    json_file,
)

_numbers = itertools.count(1)


def begin_slow_sign_in(server: Server, slow_ms: int) -> socket.socket:
    """Send a sign-in that WeChat takes long over; returns once the application has begun to read it."""
    address = urlsplit(server.address)
    body = f'{{"code": "slow-{slow_ms}"}}'.encode()
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    connection.sendall(
        b"POST /v1/auth/wechat HTTP/1.1\r\nHost: clocktower\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    assert connection.recv(1024).startswith(b"HTTP/1.1 100")
    connection.sendall(body)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_what_is_in_flight_is_answered_before_the_end_and_nothing_is_left(serve: Serve, data_dir: Path) -> None:
    server = serve(data_dir, "--workers", "2")
    assert httpx2.get(server.address + "/docs").is_success
    assert stat.S_IMODE((data_dir / "secrets.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((data_dir / "serve.json").stat().st_mode) == 0o600
    children = server.children()
    connection = begin_slow_sign_in(server, 1_500)
    server.process.send_signal(signal.SIGTERM)
    assert read_to_end(connection).startswith(b"HTTP/1.1 200")
    assert server.process.wait(60) == 0
    assert not [child for child in children if child.is_running()]
    assert not engines_in(data_dir)
    assert not (data_dir / "serve.json").exists()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(server.address + "/health/live")


def test_who_stops_it_twice_does_not_wait_for_what_is_in_flight(serve: Serve, data_dir: Path) -> None:
    # No bound of the service's own cuts the sign-in short: who waits for it hears an answer, who does not, none.
    server = serve(
        data_dir,
        env={
            "CLOCKTOWER_SHUTDOWN_GRACE_SECONDS": "300",
            "CLOCKTOWER_WECHAT_READ_TIMEOUT_MS": "60000",
            "CLOCKTOWER_WECHAT_TOTAL_TIMEOUT_MS": "60000",
        },
    )
    with begin_slow_sign_in(server, 10_000) as connection:
        server.process.send_signal(signal.SIGINT)
        await_true(lambda: "in flight" in server.log_path.read_text())
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1024) == b""
    assert not engines_in(data_dir)


@pytest.mark.parametrize("seen", ["Starting a server", "signing in", "waiting for the second"])
def test_a_rehearsal_that_is_stopped_ends_all_it_started_and_says_so(tmp_path: Path, seen: str) -> None:
    log_path = tmp_path / "rehearsal.log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "app.cli", "rehearse", "--embedded", "--parents", "200", "--seconds-before", "30"],
            cwd=ROOT,
            # Its data and its log go here.
            env=clean_environment({"TMPDIR": str(tmp_path)}),
            stdout=log,
            stderr=log,
        ) as rehearsal,
    ):
        try:
            await_true(lambda: seen in log_path.read_text())
            rehearsal.send_signal(signal.SIGINT)
            assert rehearsal.wait(60) == 130
        finally:
            rehearsal.kill()
    assert log_path.read_text().endswith("Stopped.\n")
    assert "Traceback" not in log_path.read_text()
    assert not engines_in(tmp_path)
    assert not [left for left in tmp_path.iterdir() if left.is_dir()]


def test_after_kill_nine_nothing_serves_on_and_the_next_start_has_the_data(serve: Serve, data_dir: Path) -> None:
    server = serve(data_dir, "--workers", "2")
    assert clocktower("grant", "demo-anna", "operator", "--data-dir", data_dir).returncode == 0
    kept = json_file(data_dir / "secrets.json")
    mortal = [child for child in server.children() if "app." in " ".join(child.cmdline())]
    assert len(mortal) == 4  # two web workers, the background worker, the fake WeChat
    server.process.kill()
    server.process.wait()
    psutil.wait_procs(mortal, timeout=30)
    assert not [child for child in mortal if child.is_running()]
    assert "No server runs" in clocktower("grant", "demo-anna", "staff", "--data-dir", data_dir).stderr

    again = serve(data_dir)
    assert again.roles_of("demo-anna") == ["resident", "operator"]
    assert json_file(data_dir / "secrets.json") == kept


def test_a_web_worker_lets_phones_in_by_many_doors(serve: Serve, data_dir: Path) -> None:
    worker = serve(data_dir).child("app.cli.web")
    listener = next(each for each in worker.net_connections(kind="tcp") if each.status == psutil.CONN_LISTEN)
    descriptors = Path(f"/proc/{worker.pid}/fd")
    socket_behind = (descriptors / str(listener.fd)).readlink()
    doors = [descriptor for descriptor in descriptors.iterdir() if descriptor.readlink() == socket_behind]
    assert len(doors) == CONNECTIONS_A_TURN


def test_a_killed_web_worker_is_replaced_and_the_port_answers_again(serve: Serve, data_dir: Path) -> None:
    server = serve(data_dir)
    victim = server.child("app.cli.web")
    victim.kill()
    # Whoever connects meanwhile waits in the socket's queue, and is answered.
    assert httpx2.get(server.address + "/health/ready", timeout=60).is_success
    assert server.child("app.cli.web").pid != victim.pid


def test_a_killed_engine_a_killed_worker_and_a_killed_wechat_are_started_again(serve: Serve, data_dir: Path) -> None:
    server = serve(data_dir)
    for word in ("valkey-server", "app.cli worker", "app.wechat.fake"):
        victim = server.child(word)
        victim.kill()

        def is_replaced(victim: psutil.Process = victim, word: str = word) -> bool:
            try:
                return server.child(word).pid != victim.pid
            except ValueError:
                return False

        await_true(is_replaced)
    await_true(server.is_ready)
    assert server.sign_in("demo-ben")["token_type"] == "Bearer"
    assert server.process.poll() is None


def test_a_second_serve_on_the_same_data_directory_is_refused_with_a_sentence(server: Server) -> None:
    refused = clocktower("serve", "--port", "0", "--data-dir", server.data_dir)
    assert refused.returncode == REFUSED
    assert f"is in use by process {server.process.pid}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert server.is_ready()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use_is_refused_before_an_engine_is_started(server: Server, data_dir: Path, workers: str) -> None:
    port = str(urlsplit(server.address).port)
    refused = clocktower("serve", "--port", port, "--workers", workers, "--data-dir", data_dir)
    assert refused.returncode == REFUSED
    assert (
        refused.stderr.strip()
        == f"Port {port} of 127.0.0.1 is in use; stop what listens there or choose another --port."
    )
    assert not (data_dir / "postgres").exists()


@pytest.mark.parametrize(
    ("environment", "sentences"),
    [
        ({"CLOCKTOWER_BATCH_LIMIT": "0"}, ["CLOCKTOWER_BATCH_LIMIT: ", "must be a whole number from"]),
        ({"CLOCKTOWER_LOG_LEVEL": "loud"}, ["CLOCKTOWER_LOG_LEVEL: ", "must be one of: debug, info, warning, error"]),
        ({"CLOCKTOWER_TOKEN_KEY": "short"}, ["CLOCKTOWER_TOKEN_KEY: ", "at least 32 characters"]),
        ({"CLOCKTOWER_PENDING_DEADLINE_MS": "600"}, ["CLOCKTOWER_PENDING_DEADLINE_MS: ", "COMMIT_TIMEOUT_MS"]),
        (
            {"CLOCKTOWER_BATCH_LIMIT": "many", "CLOCKTOWER_PASS_HOURS": "-1"},
            ["CLOCKTOWER_BATCH_LIMIT: ", "CLOCKTOWER_PASS_HOURS: "],
        ),
        (
            {"CLOCKTOWER_DATABASE_URL": "postgresql://h/d"},
            ["CLOCKTOWER_DATABASE_URL is set", "CLOCKTOWER_REDIS_URL is not"],
        ),
        ({"CLOCKTOWER_WECHAT_APP_ID": "wx1"}, ["CLOCKTOWER_WECHAT_APP_SECRET: "]),
        (
            {"CLOCKTOWER_DATABASE_URL": "mysql://h/d", "CLOCKTOWER_REDIS_URL": "http://h"},
            [
                "CLOCKTOWER_DATABASE_URL: ",
                "CLOCKTOWER_REDIS_URL: ",
                "CLOCKTOWER_TOKEN_KEY: ",
                "CLOCKTOWER_SEALING_KEY: ",
            ],
        ),
    ],
)
def test_a_wrong_setting_stops_the_start_with_its_name_and_what_is_allowed(
    data_dir: Path, environment: dict[str, str], sentences: list[str]
) -> None:
    refused = clocktower("serve", "--port", "0", "--data-dir", data_dir, env=environment)
    assert refused.returncode == REFUSED
    assert [sentence for sentence in sentences if sentence not in refused.stderr] == []
    assert "Traceback" not in refused.stderr
    assert not (data_dir / "postgres").exists()


def test_secrets_that_are_missing_beside_a_database_are_not_made_anew(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    refused = clocktower("serve", "--port", "0", "--data-dir", data_dir)
    assert refused.returncode == REFUSED
    assert "secrets.json is missing" in refused.stderr


@pytest.fixture
def outside(engines: Engines, fake_wechat_url: str) -> dict[str, str]:
    """Describe servers that run elsewhere, with an empty database."""
    name = f"outside_{next(_numbers)}"

    async def create() -> None:
        connection = await asyncpg.connect(engines.database_dsn)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    asyncio.run(create())
    return {
        "CLOCKTOWER_DATABASE_URL": dsn_of(engines, name),
        "CLOCKTOWER_REDIS_URL": engines.redis_url,
        "CLOCKTOWER_TOKEN_KEY": "t" * 32,
        "CLOCKTOWER_PASS_KEY": "p" * 32,
        "CLOCKTOWER_SEALING_KEY": "s" * 32,
        "CLOCKTOWER_WECHAT_BASE_URL": fake_wechat_url,
        "CLOCKTOWER_WECHAT_APP_ID": DEMO_APP_ID,
        "CLOCKTOWER_WECHAT_APP_SECRET": DEMO_APP_SECRET,
    }


def test_the_same_code_serves_on_outside_servers(serve: Serve, data_dir: Path, outside: dict[str, str]) -> None:
    refused = clocktower("serve", "--port", "0", "--no-migrate", "--data-dir", data_dir, env=outside)
    assert refused.returncode == REFUSED
    assert "clocktower migrate" in refused.stderr

    server = serve(data_dir, env=outside)
    assert server.sign_in("demo-anna")["token_type"] == "Bearer"
    assert not data_dir.exists()
    assert not [child for child in server.children() if "wechat" in " ".join(child.cmdline())]
    assert clocktower("grant", "demo-anna", "operator", env=outside).returncode == 0
    assert server.roles_of("demo-anna") == ["resident", "operator"]
    assert clocktower("doctor", env=outside).returncode == 0
    assert server.signal_and_wait(signal.SIGTERM) == 0


def test_more_workers_than_postgresql_has_connections_for_are_refused(outside: dict[str, str]) -> None:
    refused = clocktower("serve", "--port", "0", "--workers", "60", env=outside)
    assert refused.returncode == REFUSED
    assert "max_connections" in refused.stderr


def test_a_database_that_is_away_is_said_in_a_sentence_without_the_password(outside: dict[str, str]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"postgresql://someone:hunter2@127.0.0.1:{nobody.getsockname()[1]}/town"
        refused: subprocess.CompletedProcess[str] = clocktower(
            "serve", "--port", "0", env=outside | {"CLOCKTOWER_DATABASE_URL": away}
        )
    assert refused.returncode == REFUSED
    assert "cannot be used" in refused.stderr
    assert "hunter2" not in refused.stderr
    assert "Traceback" not in refused.stderr
