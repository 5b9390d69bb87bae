"""What the bench stands on: processors, who runs on which, and what each process has cost.

Seconds on a clock say what a machine was doing besides; processor time says what the work took. It is read from the
kernel's scheduler, which counts nanoseconds, and not from the clock ticks of `stat`.
"""

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

CORES_MIN: Final = 2


def _two_cores() -> tuple[int, int]:
    """Return the first two cores that this process may use; where there are none, `this_machine` says so."""
    ours = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return ours[0], ours[1 % len(ours)]


# Server on one core, everything that asks it on the other: so the server is what limits, as long as it is the slower.
SERVER_CORE, OTHER_CORE = _two_cores()
# Of a core's line in /proc/stat: its name, then user, nice, system, idle, iowait, irq, softirq, steal.
_STEAL_FIELD: Final = 8


class CannotBenchError(Exception):
    """The bench cannot take place. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that the figures are from, as far as a reader needs it to place them."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str

    def as_document(self) -> dict[str, object]:
        """Return it for the JSON report."""
        return asdict(self)


def this_machine() -> Machine:
    """Return this machine. Raises `CannotBenchError` where server and load cannot have a core each."""
    if not hasattr(os, "sched_setaffinity"):
        raise CannotBenchError("The bench needs Linux: elsewhere a process cannot be kept on one core.")
    if len(os.sched_getaffinity(0)) < CORES_MIN:
        raise CannotBenchError("The bench needs two cores: one for the server, one for the load.")
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.machine()


def whole_family(pid: int) -> list[psutil.Process]:
    """Return a process and everything below it; nothing if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def family_of(pid: int) -> list[int]:
    """Return the numbers of a process and of everything below it."""
    return [process.pid for process in whole_family(pid)]


def pin(pids: Iterable[int], cores: set[int]) -> None:
    """Keep processes, with all their threads, on these cores; what they start from now on stays there too."""
    for pid in pids:
        for thread in _threads_of(pid):
            # A thread may end meanwhile.
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)


def _threads_of(pid: int) -> list[int]:
    try:
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that these processes have had, all their threads together."""
    return sum(running_ns for running_ns, _ in _schedules(pids)) / 1e9


def kept_waiting_seconds(pids: Iterable[int]) -> float:
    """Return for how long these processes could have run, and something else had their core."""
    return sum(waiting_ns for _, waiting_ns in _schedules(pids)) / 1e9


def stolen_seconds() -> float:
    """Return for how long the two cores of the bench could have run, and their host let somebody else run ("steal")."""
    ours = {f"cpu{SERVER_CORE}", f"cpu{OTHER_CORE}"}
    lines = (line.split() for line in Path("/proc/stat").read_text("ascii").splitlines())
    return sum(int(fields[_STEAL_FIELD]) for fields in lines if fields[0] in ours) / os.sysconf("SC_CLK_TCK")


def _schedules(pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield how long each thread of these processes has run and has waited for its core, in ns."""
    for pid in pids:
        for thread in _threads_of(pid):
            try:
                running_ns, waiting_ns, _ = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text("ascii").split()
            except (FileNotFoundError, ProcessLookupError):
                # It ended between two looks; the bench keeps what it measures alive, so it was none of those.
                continue
            yield int(running_ns), int(waiting_ns)


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has in RAM."""
    return psutil.Process(pid).memory_info().rss
