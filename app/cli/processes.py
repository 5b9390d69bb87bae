"""Keeps the processes of one server alive, and ends them in order.

Each child has a session of its own, so that a terminal's Ctrl-C reaches only this process, which then lets the
children finish. Each has a lifeline (see lifeline.py), so that none outlives this process, however it ends.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, Self

from app.cli.refusal import Refusal, say

START_SECONDS_MAX: Final = 60.0
# How often what nobody announces is looked at: an engine that died, a restart that is due.
LOOK_EVERY_SECONDS: Final = 0.5
_RESTART_AFTER_SECONDS: Final = 0.25
_RESTART_AFTER_SECONDS_MAX: Final = 10.0
# A child that ended this often in a row, each time before it had settled in, has a reason that no restart removes.
_EARLY_ENDS_MAX: Final = 10
_SETTLED_AFTER_SECONDS: Final = 60.0


class KeepsDying(Exception):  # noqa: N818 - named by what happened
    """A child ended too often; `str()` is a sentence for the terminal."""


class Child:
    """One process of the server: what it is called, how it is started, whether it is ready."""

    def __init__(
        self, name: str, module: Sequence[str], *, stop_seconds: float, inherited_fd: int | None = None
    ) -> None:
        """Describe a child that runs `python -m <module…> --announce-fd N`; `start` starts it.

        What it writes there once it can be used is kept in `said`.
        """
        self.name = name
        self.stop_seconds = stop_seconds
        self.is_ready = False
        self.said = ""
        self.module = module
        self._inherited_fd = inherited_fd
        self._process: subprocess.Popen[bytes] | None = None
        self._announcement_fd: int | None = None
        self._begin_fd: int | None = None
        self._start_after = 0.0
        self._started_at = 0.0
        self._early_ends = 0

    def start(self, *, held: bool = False) -> None:
        """Start it, without waiting. One that is `held` gets `--begin-fd N`, too, and waits there for `begin`."""
        read_fd, write_fd = os.pipe()
        arguments = [f"--announce-fd={write_fd}"]
        theirs = [write_fd]
        if held:
            wait_fd, self._begin_fd = os.pipe()
            arguments.append(f"--begin-fd={wait_fd}")
            theirs.append(wait_fd)
        inherited = theirs if self._inherited_fd is None else [*theirs, self._inherited_fd]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                [sys.executable, "-m", *self.module, *arguments],
                stdin=subprocess.PIPE,
                pass_fds=inherited,
                start_new_session=True,
            )
        except BaseException:
            os.close(read_fd)
            self._forget_begin()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self.is_ready = False
        self._started_at = time.monotonic()
        self._announcement_fd = read_fd

    def begin(self) -> None:
        """Let go of one that is held."""
        if self._begin_fd is not None:
            # One that is gone already is found out by whoever waits for it.
            with suppress(BrokenPipeError):
                os.write(self._begin_fd, b"\n")
            self._forget_begin()

    def _forget_begin(self) -> None:
        if self._begin_fd is not None:
            os.close(self._begin_fd)
            self._begin_fd = None

    @property
    def announcement_fd(self) -> int | None:
        """Return what becomes readable when the child is ready or gone; None after that."""
        return self._announcement_fd

    def hear(self) -> None:
        """Take the announcement; the end of the pipe without a word is none."""
        if self._announcement_fd is not None:
            self.said = os.read(self._announcement_fd, 64).decode().strip()
            self.is_ready = bool(self.said)
            os.close(self._announcement_fd)
            self._announcement_fd = None

    @property
    def pid(self) -> int | None:
        """Return the process's id, None where none was started."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Tell whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def plan_restart(self) -> float:
        """Say in how many seconds to start again: longer after each early end. Raises `KeepsDying`."""
        self._forget()
        lived_seconds = time.monotonic() - self._started_at
        self._early_ends = 1 if lived_seconds > _SETTLED_AFTER_SECONDS else self._early_ends + 1
        if self._early_ends > _EARLY_ENDS_MAX:
            raise KeepsDying(f"The {self.name} ended {self._early_ends} times in a row; its log says why.")
        wait_seconds = min(_RESTART_AFTER_SECONDS * 2 ** (self._early_ends - 1), _RESTART_AFTER_SECONDS_MAX)
        self._start_after = time.monotonic() + wait_seconds
        return wait_seconds

    @property
    def has_ended(self) -> bool:
        """Tell whether it was started and is gone."""
        return self._process is not None and self._process.poll() is not None

    @property
    def is_due(self) -> bool:
        """Tell whether it waits to be started again, and has waited long enough."""
        return self._process is None and time.monotonic() >= self._start_after

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _forget(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
        if self._announcement_fd is not None:
            os.close(self._announcement_fd)
            self._announcement_fd = None
        self._forget_begin()

    def end(self) -> None:
        """See it dead, killing what is left of it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._forget()


class Household:
    """The children of one server, and the signals that end it. A context manager: nobody is left alive at its end.

    Before `listening`, and after it, a signal does what it did before, and ends the children by ending this context.
    """

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.stops_asked = 0
        self._wake_fd, self._signal_fd = os.pipe()
        for descriptor in (self._wake_fd, self._signal_fd):
            os.set_blocking(descriptor, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.end()
        os.close(self._wake_fd)
        os.close(self._signal_fd)

    def living(self) -> set[int]:
        """Return the process ids of the children that live."""
        return {child.pid for child in self.children if child.is_running and child.pid is not None}

    @contextmanager
    def listening(self) -> Generator[None]:
        """Count SIGTERM, SIGINT and SIGHUP instead of dying of them; a child's end wakes us."""

        def count(_number: int, _frame: FrameType | None) -> None:
            self.stops_asked += 1

        before = {number: signal.signal(number, count) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        woken_before = signal.set_wakeup_fd(self._signal_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            for child in self.children:
                child.end()
            signal.set_wakeup_fd(woken_before)
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Ask for the end from another thread."""
        self.stops_asked += 1
        os.write(self._signal_fd, b"\0")

    def launch(self, children: Sequence[Child], *, held: bool = False) -> None:
        """Start children, without waiting. Those that are `held` load what they need, and begin when they are let."""
        for child in children:
            self.children.append(child)
            child.start(held=held)

    def await_ready(self, children: Sequence[Child]) -> bool:
        """Let children begin and return True once all are ready, False when a stop was asked for meanwhile.

        Raises `Refusal` when one ends before, or none of it happens in a minute.
        """
        for child in children:
            child.begin()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not all(child.is_ready for child in children):
            if self.stops_asked:
                return False
            for child in children:
                if child.has_ended:
                    raise Refusal(f"The {child.name} did not start; its log above says why.")
            if time.monotonic() > deadline:
                raise Refusal(f"The server was not ready within {START_SECONDS_MAX:.0f} s.")
            self._wait()
        return True

    def keep(self, look: Callable[[], None]) -> None:
        """Keep everybody alive until a stop is asked for, calling `look` twice a second.

        Raises `KeepsDying`, and whatever `look` raises.
        """
        while not self.stops_asked:
            for child in self.children:
                if child.has_ended:
                    wait_seconds = child.plan_restart()
                    say(f"The {child.name} ended; it is started again in {wait_seconds:.2g} s.")
                elif child.is_due:
                    child.start()
            look()
            self._wait()

    def end(self, children: Sequence[Child]) -> None:
        """Let children finish within their bounds; whoever asks a second time does not want to wait for that."""
        began_at = time.monotonic()
        for child in children:
            child.send(signal.SIGTERM)
        while any(child.is_running for child in children):
            overdue = [child for child in children if time.monotonic() - began_at > child.stop_seconds]
            for child in children if self.stops_asked > 1 else overdue:
                child.send(signal.SIGKILL)
            self._wait()
        for child in children:
            child.end()

    def _wait(self) -> None:
        announcing = {child.announcement_fd: child for child in self.children if child.announcement_fd is not None}
        readable: list[int]
        readable, _, _ = select.select([self._wake_fd, *announcing], [], [], LOOK_EVERY_SECONDS)
        for descriptor in readable:
            if descriptor == self._wake_fd:
                os.read(self._wake_fd, 4096)
            else:
                announcing[descriptor].hear()
