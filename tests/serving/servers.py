"""`clocktower` as its users run it: processes, sockets, signals."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import httpx2
import psutil
from pydantic import SecretStr

from app.core.settings import ENVIRONMENT_PREFIX, Settings

ROOT: Final = Path(__file__).parents[2]
START_SECONDS: Final = 90.0
PATIENCE_SECONDS: Final = 60.0
REFUSED: Final = 2


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this environment without the shell's own settings, and with others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return kept | dict(extra or {})


_GIVEN: Final = (
    *("database_url", "redis_url", "token_key", "pass_key", "sealing_key"),
    *("wechat_base_url", "wechat_app_id", "wechat_app_secret"),
)


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the variables that name the servers, secrets and WeChat of these settings."""
    values = {name: getattr(settings, name) for name in _GIVEN}
    return {
        ENVIRONMENT_PREFIX + name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
    }


def clocktower(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", "app.cli", *map(str, arguments)],
        cwd=ROOT,
        env=clean_environment(env),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@dataclass
class Server:
    """A running `clocktower serve`."""

    process: subprocess.Popen[bytes]
    address: str
    data_dir: Path
    log_path: Path

    @classmethod
    def start(cls, data_dir: Path, *arguments: str, env: Mapping[str, str] | None = None) -> "Server":
        log_path = data_dir.with_suffix(".log")
        read_fd, write_fd = os.pipe()
        with os.fdopen(read_fd, "rb", buffering=0) as announcement, log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    *(sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(data_dir)),
                    *("--announce-fd", str(write_fd), *arguments),
                ],
                cwd=ROOT,
                env=clean_environment(env),
                stdout=log,
                stderr=log,
                pass_fds=[write_fd],
            )
            os.close(write_fd)
            readable, _, _ = select.select([announcement], [], [], START_SECONDS)
            address = announcement.readline().decode().strip() if readable else ""
        server = cls(process, address, data_dir, log_path)
        if not address:
            server.end()
            raise AssertionError(log_path.read_text())
        return server

    def signal_and_wait(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def child(self, word: str) -> psutil.Process:
        """Return the one child with this word in its command."""
        (found,) = [child for child in self.children() if word in command_of(child)]
        return found

    def is_ready(self) -> bool:
        try:
            return httpx2.get(self.address + "/health/ready").is_success
        except httpx2.TransportError:
            return False

    def sign_in(self, code: str) -> dict[str, object]:
        answer = httpx2.post(self.address + "/v1/auth/wechat", json={"code": code}, timeout=PATIENCE_SECONDS)
        return cast("dict[str, object]", answer.raise_for_status().json())

    def roles_of(self, code: str) -> list[str]:
        return cast("dict[str, list[str]]", self.sign_in(code)["account"])["roles"]

    def end(self) -> None:
        """Leave nothing running, whatever the test did."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in engines_in(self.data_dir):
            process.kill()


def command_of(process: psutil.Process) -> str:
    """Return what a process was started with; nothing once it is dead."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def engines_in(data_dir: Path) -> list[psutil.Process]:
    """Return what works in a data directory."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(data_dir) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def json_file(path: Path) -> dict[str, object]:
    return cast("dict[str, object]", json.loads(path.read_text("utf-8")))
