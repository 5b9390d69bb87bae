"""What the owner of running engines may count on."""

import asyncio
import os
import stat
import tempfile
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.core.embedded import (
    DataDirectoryInUse,
    start_engines,
)
from tests.core.embedded.owners import ask, connect, owner, ping, quiet, working_in


def test_both_engines_answer_every_library_that_the_house_uses(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A developer's shell often has these set for a server of their own.
    monkeypatch.setenv("PGPORT", "6543")
    monkeypatch.setenv("PGHOST", "db.invalid")
    steps: list[str] = []

    async def current_user(url: str) -> object:
        engine = create_async_engine(url)
        try:
            async with engine.connect() as connection:
                return await connection.scalar(text("SELECT current_user::text"))
        finally:
            await engine.dispose()

    with start_engines(data_dir, progress=steps.append) as engines:
        assert asyncio.run(current_user(engines.database_url)) == "clocktower"
        assert ask(engines.database_dsn, "SELECT current_database()::text") == "clocktower"
        assert ping(engines.redis_url)
    assert "Making a PostgreSQL cluster" in steps


def test_commits_are_durable_and_texts_and_times_the_same_on_every_machine(data_dir: Path) -> None:
    with start_engines(data_dir, progress=quiet) as engines:
        for setting, expected in (
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("full_page_writes", "on"),
            ("data_checksums", "on"),
            ("max_connections", "200"),
            ("timezone", "UTC"),
            ("server_encoding", "UTF8"),
            ("listen_addresses", ""),
        ):
            assert ask(engines.database_dsn, f"SELECT current_setting('{setting}')") == expected
        assert (
            ask(
                engines.database_dsn,
                "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = 'clocktower'",
            )
            == "bC.UTF-8"
        )
        # The exclusion constraint on bookings needs it, and the role is no superuser.
        ask(engines.database_dsn, "CREATE EXTENSION btree_gist")
        with connect(engines.redis_url) as client:
            configured = client.config_get("save", "appendonly", "maxmemory-policy", "port")  # pyright: ignore[reportUnknownMemberType] - **kwargs untyped
        assert configured == {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction", "port": "0"}


def test_no_secret_of_ours_reaches_the_engines_and_nobody_else_reaches_their_sockets(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOCKTOWER_TOKEN_SECRET", "not for engines")
    with start_engines(data_dir, progress=quiet) as engines:
        for pid in (engines.postgres_pid, engines.valkey_pid):
            assert "CLOCKTOWER_TOKEN_SECRET" not in psutil.Process(pid).environ()
            listening = psutil.Process(pid).net_connections(kind="inet")
            assert listening == []
        assert stat.S_IMODE((data_dir / "run").stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "run" / "valkey.sock").stat().st_mode) == 0o700


def test_a_second_start_is_refused_with_the_pid_of_the_first(data_dir: Path) -> None:
    with start_engines(data_dir, progress=quiet) as engines:
        with pytest.raises(DataDirectoryInUse) as refusal:
            start_engines(data_dir, progress=quiet)
        assert refusal.value.pid == os.getpid()
        assert f"in use by process {os.getpid()}" in str(refusal.value)
        assert ask(engines.database_dsn, "SELECT 1") == 1


def test_stopping_leaves_no_process_and_no_socket_and_may_be_repeated(data_dir: Path) -> None:
    engines = start_engines(data_dir, progress=quiet)
    engines.stop()
    assert working_in(data_dir) == []
    assert not (data_dir / "run").exists()
    assert not (data_dir / "postgres" / "postmaster.pid").exists()
    with start_engines(data_dir, progress=quiet) as successor:
        # The directory is the successor's now: neither of these may touch it.
        engines.stop()
        assert engines.mend() == ()
        assert ask(successor.database_dsn, "SELECT 1") == 1
        assert ping(successor.redis_url)


def test_a_directory_too_long_or_too_odd_for_sockets_works_and_its_short_stand_in_is_removed(
    data_dir: Path,
) -> None:
    odd_dir = data_dir / "a name, with: everything %20" / "钟楼" / ("long" * 25)
    with owner(odd_dir) as first:
        first.await_started()
        first_stand_in = (odd_dir / "run").readlink()
        first.process.kill()
        first.process.wait()
    assert first_stand_in.is_dir()
    with start_engines(odd_dir, progress=quiet) as engines:
        assert not first_stand_in.exists()
        second_stand_in = (odd_dir / "run").readlink()
        assert stat.S_IMODE(second_stand_in.stat().st_mode) == 0o700
        assert ask(engines.database_dsn, "SELECT 1") == 1
        assert ping(engines.redis_url)
    assert not second_stand_in.exists()
    assert not os.path.lexists(odd_dir / "run")


def test_where_temporary_files_have_too_long_a_path_the_sockets_go_elsewhere(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_dir = data_dir / ("long" * 25)
    long_dir.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(long_dir))
    with start_engines(long_dir / "data", progress=quiet) as engines:
        stand_in = (long_dir / "data" / "run").readlink()
        assert ping(engines.redis_url)
    assert not stand_in.exists()


def test_a_short_stand_in_goes_though_the_data_directory_was_removed_before(data_dir: Path) -> None:
    long_dir = data_dir / ("long" * 25)
    with start_engines(long_dir, progress=quiet) as engines:
        stand_in = (long_dir / "run").readlink()
        assert ping(engines.redis_url)
        (long_dir / "run").unlink()
    assert not stand_in.exists()
