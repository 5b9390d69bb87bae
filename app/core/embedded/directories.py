"""The data directory: who holds it, where things lie in it, and where the sockets can be.

```
<data_dir>/lock       held by flock for the owner's lifetime; its text is the owner's pid
<data_dir>/postgres   the cluster
<data_dir>/valkey     Valkey's working directory
<data_dir>/log        one file for each engine, and the one before
<data_dir>/run        the sockets; a link to a short private directory where this path is too long for one
```
"""

import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from app.core.embedded.account import Account
from app.core.embedded.errors import DataDirectoryInUse

# The port is part of the name of PostgreSQL's socket; no network port is opened.
POSTGRES_PORT: Final = 5432
POSTGRES_SOCKET_NAME: Final = f".s.PGSQL.{POSTGRES_PORT}"
VALKEY_SOCKET_NAME: Final = "valkey.sock"

# A socket's path has 104 bytes on macOS and 108 on Linux, the closing zero included (sys/un.h).
SOCKET_PATH_BYTES_MAX: Final = 103

# Database addresses separate hosts by commas and ports by colons, so a socket's directory must hold neither; and
# what needs no quoting anywhere cannot be misread by one of the five programs that read it.
PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/._+-]+")

SHORT_DIRECTORY_PREFIX: Final = "clocktower-"

# A log beyond this is set aside at the next start, replacing the one set aside before.
LOG_BYTES_MAX: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie under one data directory, which is absolute and free of links."""

    data_dir: Path

    @property
    def lock_path(self) -> Path:
        """Return the file whose lock makes its holder the owner."""
        return self.data_dir / "lock"

    @property
    def cluster_dir(self) -> Path:
        """Return PostgreSQL's cluster; where it exists, it is whole."""
        return self.data_dir / "postgres"

    @property
    def unfinished_cluster_dir(self) -> Path:
        """Return where a cluster is made before it is renamed into place."""
        return self.data_dir / "postgres.unfinished"

    @property
    def valkey_dir(self) -> Path:
        """Return Valkey's working directory."""
        return self.data_dir / "valkey"

    @property
    def run_path(self) -> Path:
        """Return the directory of the sockets, or the link to it."""
        return self.data_dir / "run"

    def log_path(self, engine: str) -> Path:
        """Return an engine's log."""
        return self.data_dir / "log" / f"{engine}.log"

    def open_log(self, engine: str, account: Account) -> IO[bytes]:
        """Open an engine's log for appending, setting a large one aside first."""
        path = self.log_path(engine)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
            account.own(path.parent)
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        log = path.open("ab")
        account.own(path)
        return log


class OwnerLock:
    """The right to run engines on a data directory, held until `release` or the end of the process.

    The lock belongs to the open file (flock), which no engine inherits: it is closed on exec.
    """

    def __init__(self, layout: Layout) -> None:
        """Take the lock at once. Raises `DataDirectoryInUse` when another holds it."""
        descriptor = os.open(layout.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            text = os.read(descriptor, 32).strip()
            os.close(descriptor)
            raise DataDirectoryInUse(layout.data_dir, int(text) if text.isdigit() else None) from None
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor: int | None = descriptor

    @property
    def is_held(self) -> bool:
        """Tell whether the directory is still ours."""
        return self._descriptor is not None

    def release(self) -> None:
        """Give the directory up. The file stays: deleting it would let two processes lock two files of one name."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.ftruncate(descriptor, 0)
            os.close(descriptor)


def make_run_dir(layout: Layout, account: Account) -> Path:
    """Make an empty private directory for the sockets, under the data directory where the path allows it."""
    remove_run_dir(layout, account)
    run_dir = layout.run_path
    if not _fits(run_dir):
        run_dir = _short_directory()
        # The link comes first: killed between the two, we leave nothing that the next start cannot find.
        layout.run_path.symlink_to(run_dir)
    run_dir.mkdir(mode=0o700)
    account.own(run_dir)
    return run_dir


def remove_run_dir(layout: Layout, account: Account) -> None:
    """Remove the sockets and their directory, wherever the last start put it."""
    path = layout.run_path
    if path.is_symlink():
        target = path.readlink()
        if target.name.startswith(SHORT_DIRECTORY_PREFIX) and _is_ours(target, account):
            shutil.rmtree(target)
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _short_directory() -> Path:
    """Name a directory for the sockets, in `TMPDIR` where its own path is short enough."""
    name = SHORT_DIRECTORY_PREFIX + secrets.token_hex(6)
    preferred = Path(tempfile.gettempdir(), name).absolute()
    return preferred if _fits(preferred) else Path("/tmp", name)  # noqa: S108 - private, and of a name drawn at random


def _fits(run_dir: Path) -> bool:
    longest = max(POSTGRES_SOCKET_NAME, VALKEY_SOCKET_NAME, key=len)
    text = str(run_dir)
    return len(os.fsencode(run_dir / longest)) <= SOCKET_PATH_BYTES_MAX and PLAIN_PATH.fullmatch(text) is not None


def _is_ours(directory: Path, account: Account) -> bool:
    """Tell whether it is a real directory of the engines' user, not one that a stranger put there."""
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid in {os.geteuid(), account.uid}
