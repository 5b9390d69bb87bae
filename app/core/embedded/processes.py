"""Finds the processes that work in a directory, and ends them within a bound.

An engine is known by its program's name and its working directory, both read from the operating system. A pid file
alone proves nothing: the number may belong to somebody else by now, who must never be signalled.
"""

import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

from app.core.embedded.account import Account
from app.core.embedded.errors import EngineWillNotStop

# How often a process is looked at while its start or end is awaited: short against both (tens of milliseconds),
# long against the look itself (tens of microseconds).
POLL_INTERVAL_SECONDS: Final = 0.01

# What an engine may know of our environment. Secrets stay out, and so do PG* variables and locales, which would
# change what the engines do from one machine to the next.
INHERITED_VARIABLES: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Step:
    """One attempt at ending a process: the signal, and how long it gets before the next attempt."""

    signal: signal.Signals
    bound_seconds: float


def engine_environment() -> dict[str, str]:
    """Return the environment that engine programs get: no secrets, no locale, UTC."""
    kept = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def launch(
    command: Sequence[str | Path],
    *,
    account: Account,
    directory: Path,
    output: IO[bytes] | int,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a program in `directory` as `account`, in a session of its own.

    The session keeps a terminal's Ctrl-C and hang-up away from the engines: they end by `stop_processes` alone.
    """
    return subprocess.Popen(  # noqa: S603 - programs found in our own installation, arguments made here
        [str(part) for part in command],
        cwd=directory,
        env=engine_environment(),
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=account.uid,
        group=account.gid,
        extra_groups=account.extra_groups,
        umask=0o077,
    )


def find_processes(*, names: Collection[str], directories: Collection[Path]) -> list[psutil.Process]:
    """Return the live processes called one of `names` whose working directory is one of `directories`."""
    wanted = {str(directory) for directory in directories}
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.name() in names and process.cwd() in wanted and not has_ended(process):
                found.append(process)
        except psutil.Error:
            # It ended meanwhile, or it is a stranger's: ours are readable to us.
            continue
    return found


def stop_processes(processes: Iterable[psutil.Process], steps: Sequence[Step]) -> None:
    """End the processes, one step after the other until none is left.

    Raises `EngineWillNotStop` when some outlive the last step.
    """
    left = [process for process in processes if not has_ended(process)]
    for step in steps:
        for process in left:
            _send(process, step.signal)
        left = _await_end(left, step.bound_seconds)
        if not left:
            return
    if left:
        raise EngineWillNotStop([process.pid for process in left])


def stop_child(child: subprocess.Popen[bytes], steps: Sequence[Step]) -> None:
    """End a process that we started, and reap it. Raises `EngineWillNotStop` when it outlives the last step."""
    for step in steps:
        child.send_signal(step.signal)
        try:
            child.wait(step.bound_seconds)
        except subprocess.TimeoutExpired:
            continue
        return
    raise EngineWillNotStop([child.pid])


def roots(processes: Collection[psutil.Process]) -> list[psutil.Process]:
    """Return those whose parent is not among them: the servers, without the processes that they made."""
    pids = {process.pid for process in processes}
    parents: Mapping[int, int] = {process.pid: _parent_pid(process) for process in processes}
    return [process for process in processes if parents[process.pid] not in pids]


def has_ended(process: psutil.Process) -> bool:
    """Tell whether it is gone; a zombie counts as gone, since in a container nobody may ever reap it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        # psutil compares the creation time first, so a reused pid is not signalled.
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _parent_pid(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def _await_end(processes: list[psutil.Process], bound_seconds: float) -> list[psutil.Process]:
    """Return those that still live when the bound has passed."""
    deadline = time.monotonic() + bound_seconds
    left = processes
    while left := [process for process in left if not has_ended(process)]:
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_INTERVAL_SECONDS)
    return left
