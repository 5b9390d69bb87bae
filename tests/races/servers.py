"""Real server processes on free ports of loopback, and a way to end one as a crash does."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.core.settings import ENVIRONMENT_PREFIX, Settings

_STOP_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """One server process and its address."""

    address: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(_STOP_SECONDS)

    def stop(self) -> None:
        """End it as a deployment does, or at once if it takes too long."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        finally:
            assert self.process.stdin is not None
            self.process.stdin.close()


def _environment(settings: Settings) -> dict[str, str]:
    told: dict[str, str] = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        secret = getattr(value, "get_secret_value", None)
        told[f"{ENVIRONMENT_PREFIX}{name.upper()}"] = str(secret() if secret is not None else value)
    return {**os.environ, **told, f"{ENVIRONMENT_PREFIX}LOG_LEVEL": "warning"}


@contextmanager
def serving_processes(settings: Settings, *, count: int) -> Generator[list[Server]]:
    """Start so many web workers with these settings. A phone that comes before one is ready waits in its queue."""
    servers: list[Server] = []
    try:
        for _ in range(count):
            with (
                socket.create_server(("127.0.0.1", 0), backlog=1024) as listener,
                Path(os.devnull).open("wb") as nobody,
            ):
                command = [sys.executable, "-m", "app.cli.web", f"--listen-fd={listener.fileno()}"]
                command.append(f"--announce-fd={nobody.fileno()}")
                process = subprocess.Popen(  # noqa: S603 - our own program, arguments made here
                    command,
                    env=_environment(settings),
                    pass_fds=[listener.fileno(), nobody.fileno()],
                    # Each ends with this process, however that ends.
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                )
                servers.append(Server(f"http://127.0.0.1:{listener.getsockname()[1]}", process))
        yield servers
    finally:
        for server in servers:
            server.stop()
