"""Starts the fake in a process of its own and knows when it listens; it never outlives whoever started it."""

import os
import select
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

START_TIMEOUT_SECONDS: Final = 15.0
STOP_TIMEOUT_SECONDS: Final = 5.0


class FakeWeChatNotStartedError(Exception):
    """The fake did not come up; its own words are on standard error."""


@dataclass(slots=True)
class FakeWeChatProcess:
    """A running fake. Its lifeline is a pipe: even if this process is killed, the fake sees the end of it and stops."""

    base_url: str
    _process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, *, port: int = 0) -> Self:
        """Start the fake on loopback and return once it accepts connections; `port` 0 takes a free one.

        Raises `FakeWeChatNotStartedError` when it ends, or says nothing for 15 seconds.
        """
        read_fd, write_fd = os.pipe()
        with os.fdopen(read_fd, "rb", buffering=0) as announcement:
            try:
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [
                        sys.executable,
                        "-m",
                        "app.wechat.fake",
                        f"--port={port}",
                        f"--announce-fd={write_fd}",
                        "--lifeline",
                    ],
                    stdin=subprocess.PIPE,
                    pass_fds=[write_fd],
                    # Ctrl-C goes to the whole terminal's group; the fake must still answer what is in flight.
                    start_new_session=True,
                )
            finally:
                os.close(write_fd)
            # The end of the pipe without a line is a death, and is seen at once.
            readable, _, _ = select.select([announcement], [], [], START_TIMEOUT_SECONDS)
            line = announcement.readline().strip() if readable else b""
        started = cls(f"http://127.0.0.1:{line.decode()}", process)
        if not line:
            started.stop()
            raise FakeWeChatNotStartedError
        return started

    @property
    def pid(self) -> int:
        """The fake's process id."""
        return self._process.pid

    def stop(self) -> None:
        """Stop the fake and wait for its end, which comes within seconds. Harmless when it has ended already."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
