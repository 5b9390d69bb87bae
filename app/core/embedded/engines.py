"""Owns both engines of one data directory, from the lock to the last process."""

import errno
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from app.core.embedded.account import Account, choose_account
from app.core.embedded.directories import Layout, OwnerLock, make_run_dir, remove_run_dir
from app.core.embedded.errors import DataDirectoryUnusable, DiskFull, EngineFault, EngineKeepsDying
from app.core.embedded.postgres import Postgres
from app.core.embedded.valkey import Valkey

# An engine that dies more often than this has a reason that a restart does not remove.
RESTARTS_MAX: Final = 5
RESTART_WINDOW_SECONDS: Final = 60.0

DISK_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
UNUSABLE_ERRNOS: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
)


class Engines:
    """A running PostgreSQL and a running Valkey. Made by `start_engines`; usable as a context manager.

    They run until `stop`, whatever happens to the terminal. `mend` restarts one that died.
    """

    def __init__(self, layout: Layout, account: Account, lock: OwnerLock, progress: Callable[[str], None]) -> None:
        """Prepare, without starting anything; `start` does that."""
        self._layout = layout
        self._account = account
        self._lock = lock
        self._progress = progress
        self._postgres = Postgres(layout, account, progress)
        self._valkey = Valkey(layout, account, progress)
        self._run_dir = layout.run_path
        self._restarts: deque[float] = deque(maxlen=RESTARTS_MAX)
        self._stopped = False
        # `mend` may be called from another thread than `stop`; an engine must not be restarted behind its back.
        self._guard = threading.Lock()

    @property
    def data_dir(self) -> Path:
        """Return the data directory, absolute."""
        return self._layout.data_dir

    @property
    def database_url(self) -> str:
        """Return the database's address for SQLAlchemy with asyncpg."""
        return self._postgres.dsn.replace("postgresql://", "postgresql+asyncpg://", 1)

    @property
    def database_dsn(self) -> str:
        """Return the database's address for asyncpg, psql and everything else that reads libpq's form."""
        return self._postgres.dsn

    @property
    def redis_url(self) -> str:
        """Return Valkey's address for redis-py."""
        return self._valkey.url

    @property
    def postgres_pid(self) -> int | None:
        """Return the postmaster's pid, None once stopped."""
        return self._postgres.pid

    @property
    def valkey_pid(self) -> int | None:
        """Return Valkey's pid, None once stopped."""
        return self._valkey.pid

    def start(self) -> None:
        """Mend what an earlier owner left, then start both. Raises `EngineFault`; nothing runs then."""
        self._postgres.stop_leftovers()
        self._valkey.stop_leftovers()
        self._run_dir = make_run_dir(self._layout, self._account)
        self._account.open_the_way(self._run_dir, self._progress)
        self._valkey.launch(self._run_dir)
        self._postgres.ensure_cluster()
        self._progress("Starting PostgreSQL and Valkey")
        self._account.open_the_way(self._layout.cluster_dir, self._progress)
        self._postgres.launch(self._run_dir)
        self._valkey.await_ready()
        self._postgres.await_ready()
        self._postgres.ensure_database()

    def mend(self) -> tuple[str, ...]:
        """Restart what has died, on the same addresses, and return its names; normally nothing.

        A look costs microseconds, a restart up to seconds: call it every second or so, off the event loop.
        Raises `EngineKeepsDying` past 5 restarts within 60 s, and whatever a start raises.
        """
        with self._guard:
            if self._stopped:
                return ()
            mended: list[str] = []
            for engine in (self._valkey, self._postgres):
                if not engine.has_died():
                    continue
                self._count_restart(engine)
                engine.stop()
                engine.stop_leftovers()
                engine.launch(self._run_dir)
                engine.await_ready()
                mended.append(engine.name)
            return tuple(mended)

    def stop(self) -> None:
        """Stop both, remove the sockets and give the data directory up. Again, it does nothing.

        Takes at most about 40 s when an engine hangs. Raises `EngineWillNotStop` when even SIGKILL does not help.
        """
        with self._guard:
            # Without the lock the directory may be another owner's already, and its sockets with it.
            if not self._lock.is_held:
                return
            # The lock goes last: a stop that was interrupted, or failed, can be asked for again.
            self._stopped = True
            try:
                self._valkey.stop()
            finally:
                self._postgres.stop()
            remove_run_dir(self._layout, self._account)
            # Whoever has removed the data directory meanwhile took the link to a short stand-in along.
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _count_restart(self, engine: Postgres | Valkey) -> None:
        now_seconds = time.monotonic()
        if len(self._restarts) == RESTARTS_MAX and now_seconds - self._restarts[0] < RESTART_WINDOW_SECONDS:
            raise EngineKeepsDying(
                engine.name,
                restarts=RESTARTS_MAX,
                window_seconds=RESTART_WINDOW_SECONDS,
                log_path=engine.log_path,
            )
        self._restarts.append(now_seconds)


def start_engines(data_dir: Path, *, progress: Callable[[str], None]) -> Engines:
    """Start PostgreSQL and Valkey under `data_dir`, which is made when missing, and return once both can be used.

    Blocks for one to five seconds: call it before there is an event loop. `progress` gets a short sentence for each
    step that takes time. Raises `DataDirectoryInUse` when another process runs engines there, and other `EngineFault`s
    when they cannot run; then nothing is left running and the directory is free again.
    """
    layout = Layout(data_dir.expanduser().resolve())
    try:
        # Others' files lie here too, secrets among them: nobody else may look around.
        layout.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = OwnerLock(layout)
    except OSError as problem:
        raise _in_words(problem, layout) from problem
    try:
        engines = Engines(layout, choose_account(layout.cluster_dir), lock, progress)
    except BaseException:
        lock.release()
        raise
    try:
        engines.start()
    except BaseException as problem:
        engines.stop()
        if isinstance(problem, OSError):
            raise _in_words(problem, layout) from problem
        raise
    return engines


def _in_words(problem: OSError, layout: Layout) -> EngineFault | OSError:
    if problem.errno in DISK_FULL_ERRNOS:
        return DiskFull(layout.data_dir, free_bytes=0)
    if problem.errno in UNUSABLE_ERRNOS:
        return DataDirectoryUnusable(layout.data_dir, problem)
    return problem
