"""PostgreSQL and Valkey of one round, which can be killed, frozen, emptied and brought back while others use them.

They are started as `clocktower serve` starts its own. What is left out is what would look after them.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import psutil

from app.core.embedded import start_engines
from app.core.embedded.account import Account, choose_account
from app.core.embedded.directories import POSTGRES_SOCKET_NAME, VALKEY_SOCKET_NAME, Layout, make_run_dir, remove_run_dir
from app.core.embedded.postgres import ROLE, SUPERUSER, Postgres
from app.core.embedded.valkey import Valkey
from tests.conftest import migrate

Say = Callable[[str], None]

# What the cluster has room for beyond itself where it stands on a small file system.
_SMALL_DISK_SPARE_BYTES: Final = 64 << 20
_OBSERVER: Final = Path(__file__).with_name("observer.sql")


@dataclass(frozen=True, slots=True)
class Template:
    """A cluster that was made, migrated and given its observer once; each round gets a copy."""

    cluster_dir: Path
    account: Account

    @classmethod
    def make(cls, directory: Path, say: Say, furnish: Callable[[str], object] = lambda _dsn: None) -> "Template":
        """Make one under this directory, furnished by whoever is given its address. Blocks for some seconds."""
        data_dir = directory / "template"
        with start_engines(data_dir, progress=say) as engines:
            migrate(engines.database_dsn)
            furnish(engines.database_dsn)
            asyncio.run(_observe(engines.database_dsn))
        cluster_dir = Layout(data_dir).cluster_dir
        return cls(cluster_dir, choose_account(cluster_dir))

    def size_bytes(self) -> int:
        """Return how much of a disk it takes."""
        return sum(path.stat().st_size for path in self.cluster_dir.rglob("*") if path.is_file())


async def _observe(database_dsn: str) -> None:
    for user, statements in (
        (ROLE, _OBSERVER.read_text("utf-8")),
        # From its next start on: when a change could be seen by others, the change itself cannot know.
        (SUPERUSER, "ALTER SYSTEM SET track_commit_timestamp = on"),
    ):
        connection = await asyncpg.connect(database_dsn, user=user)
        try:
            await connection.execute(statements)
        finally:
            await connection.close()


class SmallDisk:
    """A file system of its own for a cluster, which can be filled to the last byte. Needs the right to mount."""

    def __init__(self, at: Path) -> None:
        self._at = at
        self._ballast = at / "ballast"

    @staticmethod
    def is_possible() -> bool:
        """Tell whether this process may mount one."""
        return os.geteuid() == 0 and bool(shutil.which("unshare")) and _may_mount()

    def mount(self, size_bytes: int) -> None:
        """Make it, empty."""
        self._at.mkdir(mode=0o700)
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", str(self._at))

    def fill(self) -> None:
        """Take all the room that is left."""
        with self._ballast.open("wb", buffering=0) as ballast:
            for chunk in (1 << 20, 4_096, 1):
                try:
                    while True:
                        ballast.write(b"\0" * chunk)
                except OSError:
                    continue

    def clear(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Take it away, with everything on it."""
        _run("umount", str(self._at))


def _may_mount() -> bool:
    """Try it in a namespace of its own, which goes with the process."""
    command = ("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt")
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603 - our own words


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own words


class Plant:
    """Both engines of one round. Every method that starts or stops something blocks: call it in a thread."""

    def __init__(self, data_dir: Path, template: Template) -> None:
        self._template = template
        self._account = template.account
        self._layout = Layout(data_dir)
        self._second_layout = Layout(data_dir / "second")
        self.postgres = Postgres(self._layout, self._account, _quietly)
        self.valkey = Valkey(self._layout, self._account, _quietly)
        self.second_valkey = Valkey(self._second_layout, self._account, _quietly)
        self._run_dir = self._layout.run_path
        self._second_run_dir = self._second_layout.run_path
        self.small_disk: SmallDisk | None = None

    @property
    def database_dsn(self) -> str:
        """Return PostgreSQL's own address."""
        return self.postgres.dsn

    @property
    def postgres_socket(self) -> Path:
        """Return where PostgreSQL listens."""
        return self._run_dir / POSTGRES_SOCKET_NAME

    @property
    def valkey_socket(self) -> Path:
        """Return where the first Valkey listens."""
        return self._run_dir / VALKEY_SOCKET_NAME

    @property
    def second_valkey_socket(self) -> Path:
        """Return where the second Valkey listens, once it is started."""
        return self._second_run_dir / VALKEY_SOCKET_NAME

    def start(self, *, on_a_small_disk: bool = False) -> None:
        """Start both with what the template holds. Raises `EngineFault`."""
        self._layout.data_dir.mkdir(mode=0o700)
        if on_a_small_disk:
            disk = SmallDisk(self._layout.cluster_dir)
            disk.mount(self._template.size_bytes() + _SMALL_DISK_SPARE_BYTES)
            self.small_disk = disk
        _run("cp", "-a", f"{self._template.cluster_dir}/.", str(self._layout.cluster_dir))
        self._run_dir = make_run_dir(self._layout, self._account)
        self._account.open_the_way(self._run_dir, _quietly)
        self.valkey.launch(self._run_dir)
        self.postgres.launch(self._run_dir)
        self.valkey.await_ready()
        self.postgres.await_ready()

    def stop(self) -> None:
        """Stop everything, whatever state it is in, and leave nothing."""
        for process in (*self.postgres_family(), *self.valkeys()):
            _signal(process, signal.SIGCONT)
        for engine in (self.valkey, self.second_valkey):
            engine.stop()
            engine.stop_leftovers()
        if self.small_disk is not None:
            self.small_disk.clear()
        self.kill_postgres()
        self.postgres.stop()
        self.postgres.stop_leftovers()
        if self.small_disk is not None:
            self.small_disk.unmount()
        for layout in (self._layout, self._second_layout):
            remove_run_dir(layout, self._account)

    # What can be done to them.

    def postgres_family(self) -> list[psutil.Process]:
        """Return PostgreSQL's processes, the postmaster first."""
        return family_of(self.postgres)

    def valkeys(self) -> Sequence[psutil.Process]:
        """Return the processes of Valkey that live."""
        found: list[psutil.Process] = []
        for engine in (self.valkey, self.second_valkey):
            if engine.pid is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(engine.pid))
        return found

    def kill_postgres(self) -> None:
        """End PostgreSQL as a crash of the machine would: the postmaster and all that it made."""
        for process in self.postgres_family():
            _signal(process, signal.SIGKILL)

    def restart_postgres(self) -> None:
        """Start PostgreSQL again, wherever it died. Raises `EngineFault`."""
        self.postgres.stop()
        self.postgres.stop_leftovers()
        self.postgres.launch(self._run_dir)
        self.postgres.await_ready()

    def kill_valkey(self) -> None:
        """End Valkey in the middle of whatever it does."""
        if self.valkey.pid is not None:
            _signal(psutil.Process(self.valkey.pid), signal.SIGKILL)

    def restart_valkey(self) -> None:
        """Start Valkey again, with nothing in it. Raises `EngineFault`."""
        self.valkey.stop()
        self.valkey.launch(self._run_dir)
        self.valkey.await_ready()

    def start_second_valkey(self) -> None:
        """Start another Valkey beside the first, empty. Raises `EngineFault`."""
        self._second_layout.data_dir.mkdir(mode=0o700)
        self._account.own(self._second_layout.data_dir)
        self._second_run_dir = make_run_dir(self._second_layout, self._account)
        self._account.open_the_way(self._second_run_dir, _quietly)
        self.second_valkey.launch(self._second_run_dir)
        self.second_valkey.await_ready()


def family_of(postgres: Postgres) -> list[psutil.Process]:
    """Return a PostgreSQL's processes, the postmaster first; none if it has ended, or ends at this moment."""
    if postgres.pid is None:
        return []
    try:
        postmaster = psutil.Process(postgres.pid)
        return [postmaster, *postmaster.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def freeze(processes: list[psutil.Process]) -> None:
    """Stop these processes where they are."""
    for process in processes:
        _signal(process, signal.SIGSTOP)


def thaw(processes: list[psutil.Process]) -> None:
    """Let these processes go on."""
    for process in processes:
        _signal(process, signal.SIGCONT)


def kill(process: psutil.Process) -> None:
    """End this process in the middle of whatever it does."""
    _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _quietly(_sentence: str) -> None:
    return
