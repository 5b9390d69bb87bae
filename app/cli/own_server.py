"""Starts a `clocktower serve` of one's own beside a command that needs one, and stops it with the command."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from app.cli import surroundings
from app.cli.refusal import Refusal

# A first start makes a cluster and migrates it: seconds on a good disk, a minute on a poor one.
START_SECONDS_MAX: Final = 180.0
# serve bounds its own end (grace of the workers, then the engines' 40 s); this is past it.
STOP_SECONDS_MAX: Final = 120.0


class OwnServer:
    """A running server on engines of its own. A context manager; it never outlives this process."""

    def __init__(self, data_dir: Path, log_path: Path, process: subprocess.Popen[bytes]) -> None:
        """Take a process that was started; `start` starts one."""
        self.data_dir = data_dir
        self.log_path = log_path
        self.address = ""
        self._process = process

    @classmethod
    def start(
        cls, data_dir: Path, *, port: int, workers: int, log_path: Path, given: Mapping[str, str] | None = None
    ) -> Self:
        """Start on loopback and return once it answers. Raises `Refusal` with its last words when it does not.

        `given` are variables for it alone; where they name servers, it runs no engines of its own.
        """
        # Its engines are to be its own, and so is its WeChat, whatever this shell is set up for.
        foreign = {surroundings.DATABASE_URL, surroundings.REDIS_URL, *surroundings.WECHAT}
        read_fd, write_fd = os.pipe()
        with os.fdopen(read_fd, "rb", buffering=0) as announcement, log_path.open("ab") as log:
            server: Self | None = None
            try:
                try:
                    # Interrupted in between, a process would run of which nobody knows.
                    with _interrupts_held_back():
                        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                            [
                                *(sys.executable, "-m", "app.cli", "serve"),
                                *("--port", str(port), "--workers", str(workers), "--data-dir", str(data_dir)),
                                *("--announce-fd", str(write_fd), "--lifeline"),
                            ],
                            env={name: value for name, value in os.environ.items() if name not in foreign}
                            | dict(given or {}),
                            stdin=subprocess.PIPE,
                            stdout=log,
                            stderr=log,
                            pass_fds=[write_fd],
                            # Ctrl-C is for this process, which then stops the server when it has finished with it.
                            start_new_session=True,
                        )
                        server = cls(data_dir, log_path, process)
                finally:
                    os.close(write_fd)
                # The end of the pipe without a line is a death, and is seen at once.
                readable, _, _ = select.select([announcement], [], [], START_SECONDS_MAX)
                server.address = announcement.readline().decode().strip() if readable else ""
            except BaseException:
                if server is not None:
                    server.stop()
                raise
        if not server.address:
            server.stop()
            raise Refusal(server.last_words())
        return server

    def last_words(self) -> str:
        """Return what it said last, where it did not start."""
        lines = self.log_path.read_text("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "The server did not start and said nothing."

    @property
    def pid(self) -> int:
        """Return the process that keeps the others."""
        return self._process.pid

    def wait(self) -> int:
        """Wait for its end, whoever brings it about, and return its exit status."""
        return self._process.wait()

    def stop(self) -> None:
        """Stop it, answering what is in flight, and wait for its end. Again, it does nothing."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            # The next start on its data directory mends what is left.
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def _interrupts_held_back() -> Generator[None]:
    """Let Ctrl-C take effect behind the body. In any thread but the main one it has none anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    was_interrupted = False

    def take_notice(_number: int, _frame: FrameType | None) -> None:
        nonlocal was_interrupted
        was_interrupted = True

    before = signal.signal(signal.SIGINT, take_notice)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        if was_interrupted:
            signal.raise_signal(signal.SIGINT)
