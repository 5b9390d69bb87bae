"""What a killed, interrupted or crashed run leaves, and how the next one mends it."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from app.core.embedded import (
    EngineKeepsDying,
    start_engines,
)
from app.core.embedded.account import choose_account
from app.core.embedded.processes import roots
from tests.core.embedded.owners import PATIENCE_SECONDS, ask, await_true, kill_child, owner, ping, quiet, working_in


def test_a_killed_owner_is_succeeded_with_every_committed_row(data_dir: Path) -> None:
    with owner(data_dir) as first:
        started = first.await_started()
        ask(str(started["dsn"]), "CREATE TABLE kept AS SELECT 300 AS places")
        first.process.kill()
        first.process.wait()
    left_behind = working_in(data_dir)
    assert len(roots(left_behind)) == 2
    steps: list[str] = []
    with start_engines(data_dir, progress=steps.append) as engines:
        assert ask(engines.database_dsn, "SELECT places FROM kept") == 300
        assert ping(engines.redis_url)
        assert not set(left_behind) & set(working_in(data_dir))
    assert any("PostgreSQL that an earlier run left" in step for step in steps)
    assert any("Valkey that an earlier run left" in step for step in steps)
    assert working_in(data_dir) == []


def test_owner_and_engines_killed_together_are_succeeded_with_every_committed_row(data_dir: Path) -> None:
    with owner(data_dir) as first:
        started = first.await_started()
        ask(str(started["dsn"]), "CREATE TABLE kept AS SELECT 300 AS places")
        first.process.kill()
        for process in working_in(data_dir):
            process.kill()
    assert (data_dir / "postgres" / "postmaster.pid").exists()
    assert (data_dir / "run" / "valkey.sock").exists()
    with start_engines(data_dir, progress=quiet) as engines:
        assert ask(engines.database_dsn, "SELECT places FROM kept") == 300
        assert ping(engines.redis_url)


def test_a_pid_file_whose_number_is_somebody_elses_by_now_harms_nobody(data_dir: Path) -> None:
    start_engines(data_dir, progress=quiet).stop()
    account = choose_account(data_dir / "postgres")
    # PostgreSQL alone would refuse to start: a live process of its own user has the number.
    with subprocess.Popen(
        ["/bin/cat"], stdin=subprocess.PIPE, user=account.uid, group=account.gid, extra_groups=account.extra_groups
    ) as bystander:
        pid_path = data_dir / "postgres" / "postmaster.pid"
        pid_path.write_text(f"{bystander.pid}\n{data_dir / 'postgres'}\n1\n5432\n{data_dir / 'run'}\n\n1 1\nready\n")
        account.own(pid_path)
        with start_engines(data_dir, progress=quiet) as engines:
            assert engines.postgres_pid != bystander.pid
            assert ask(engines.database_dsn, "SELECT 1") == 1
        assert bystander.poll() is None
        bystander.communicate(b"")
        assert bystander.returncode == 0


def test_a_cluster_whose_making_was_cut_short_is_made_anew(data_dir: Path) -> None:
    with owner(data_dir) as first:
        await_true((data_dir / "postgres.unfinished" / "PG_VERSION").exists)
        first.process.kill()
    assert not (data_dir / "postgres").exists()
    with start_engines(data_dir, progress=quiet) as engines:
        assert ask(engines.database_dsn, "SELECT 1") == 1
        assert not (data_dir / "postgres.unfinished").exists()


def test_ctrl_c_in_the_terminal_reaches_the_owner_and_not_the_engines(data_dir: Path) -> None:
    with owner(data_dir) as first:
        started = first.await_started()
        os.killpg(first.process.pid, signal.SIGINT)
        interrupts: object = 0
        while interrupts == 0:
            first.tell("interrupted yet?")
            interrupts = first.read()["interrupts"]
        assert ask(str(started["dsn"]), "SELECT 1") == 1
        assert ping(str(started["redis_url"]))
        first.tell("stop")
        assert first.process.wait(PATIENCE_SECONDS) == 0
    assert working_in(data_dir) == []


def test_ctrl_c_while_the_cluster_is_made_leaves_nothing_running(data_dir: Path) -> None:
    class Interrupted(BaseException):
        """Stands for KeyboardInterrupt, which pytest would take for its own."""

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupted

    def interrupt_soon(step: str) -> None:
        if step == "Making a PostgreSQL cluster":
            # In the middle of initdb, which takes several times as long.
            signal.setitimer(signal.ITIMER_REAL, 0.1)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupted):
            start_engines(data_dir, progress=interrupt_soon)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    await_true(lambda: working_in(data_dir) == [])
    with start_engines(data_dir, progress=quiet) as engines:
        assert ask(engines.database_dsn, "SELECT 1") == 1


def test_an_engine_that_died_is_restarted_on_its_address_until_it_has_died_too_often(data_dir: Path) -> None:
    with start_engines(data_dir, progress=quiet) as engines:
        assert engines.mend() == ()
        ask(engines.database_dsn, "CREATE TABLE kept AS SELECT 300 AS places")
        kill_child(engines.postgres_pid)
        kill_child(engines.valkey_pid)
        assert engines.mend() == ("Valkey", "PostgreSQL")
        assert ask(engines.database_dsn, "SELECT places FROM kept") == 300
        assert ping(engines.redis_url)
        for _ in range(3):
            kill_child(engines.valkey_pid)
            assert engines.mend() == ("Valkey",)
        kill_child(engines.valkey_pid)
        with pytest.raises(EngineKeepsDying, match="Valkey died again after 5 restarts"):
            engines.mend()


def test_a_socket_file_without_a_server_does_not_hinder_the_start(data_dir: Path) -> None:
    run_dir = data_dir / "run"
    run_dir.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "valkey.sock"))
    with start_engines(data_dir, progress=quiet) as engines:
        assert ping(engines.redis_url)
