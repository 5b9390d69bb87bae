"""A PostgreSQL and its standby, made with the server's own tools, each on a unix socket of its own."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg

from app.core.embedded.directories import POSTGRES_PORT, Layout, make_run_dir
from app.core.embedded.postgres import DATABASE, ROLE, SUPERUSER, Postgres
from app.core.embedded.processes import launch
from loadtest.threads import in_thread
from tests.chaos.engines import Plant, Template, family_of, freeze, thaw

STANDBY_NAME: Final = "standby"
_COPY_SECONDS_MAX: Final = 30.0


class Pair:
    """The primary with a Valkey beside it, and the standby. Whatever starts or stops something blocks."""

    def __init__(self, directory: Path, template: Template) -> None:
        self.primary = Plant(directory / "primary", template)
        self._account = template.account
        self._layout = Layout(directory / "standby")
        self._run_dir = self._layout.run_path
        self.standby = Postgres(self._layout, self._account, lambda _sentence: None)

    @property
    def database_url(self) -> str:
        """Return the address that names both; whichever is the primary is used."""
        directories = f"{self.primary.postgres_socket.parent},{self._run_dir}"
        ports = f"{POSTGRES_PORT},{POSTGRES_PORT}"
        return f"postgresql://{ROLE}@/{DATABASE}?host={directories}&port={ports}&target_session_attrs=primary"

    @property
    def standby_url(self) -> str:
        """Return the address of the standby alone."""
        return f"postgresql://{ROLE}@/{DATABASE}?host={self._run_dir}&port={POSTGRES_PORT}"

    def start(self) -> None:
        """Start both, the second as a copy of the first that follows it."""
        self.primary.start()
        self._layout.data_dir.mkdir(mode=0o700)
        self._account.own(self._layout.data_dir)
        self._run_dir = make_run_dir(self._layout, self._account)
        self._account.open_the_way(self._run_dir, lambda _sentence: None)
        followed = f"host={self.primary.postgres_socket.parent} port={POSTGRES_PORT} user={SUPERUSER}"
        with self._layout.open_log("copy", self._account) as log:
            copying = launch(
                [
                    self.standby.bin_dir / "pg_basebackup",
                    *("--dbname", f"{followed} application_name={STANDBY_NAME}"),
                    *("--pgdata", self._layout.cluster_dir),
                    *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
                ],
                account=self._account,
                directory=self._layout.data_dir,
                output=log,
            )
            assert copying.wait(_COPY_SECONDS_MAX) == 0, self._layout.log_path("copy").read_text()
        self.standby.launch(self._run_dir)
        self.standby.await_ready()

    def stop(self) -> None:
        """Stop both, whatever state they are in."""
        try:
            self.thaw_standby()
            self.standby.stop()
            self.standby.stop_leftovers()
        finally:
            self.primary.stop()

    def freeze_standby(self) -> None:
        """Let the standby hear and say nothing more."""
        freeze(family_of(self.standby))

    def thaw_standby(self) -> None:
        """Let the standby go on."""
        thaw(family_of(self.standby))

    async def command(self, *statements: str) -> None:
        """Have a superuser say something to the primary, whichever that is."""
        connection = await asyncpg.connect(self.database_url, user=SUPERUSER)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def wait_for_standby(self, *names: str) -> None:
        """Have the primary's commits wait for these standbys from now on; without any, for none."""
        written = ", ".join(names)
        await self.command(f"ALTER SYSTEM SET synchronous_standby_names = '{written}'", "SELECT pg_reload_conf()")

    async def promote(self) -> None:
        """Make the standby the primary, as an operator, or what watches in their place, does."""
        connection = await asyncpg.connect(self.standby_url, user=SUPERUSER)
        try:
            assert await connection.fetchval("SELECT pg_promote()")
        finally:
            await connection.close()


@asynccontextmanager
async def standing_pair(directory: Path, template: Template) -> AsyncGenerator[Pair]:
    """Start both, with commits that wait for the standby, and leave no process behind."""
    pair = Pair(directory, template)
    try:
        await in_thread(pair.start)
        await pair.wait_for_standby(STANDBY_NAME)
        yield pair
    finally:
        await in_thread(pair.stop)
