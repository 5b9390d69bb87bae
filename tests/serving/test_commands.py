import re
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from app.core.settings import ENVIRONMENT_PREFIX, Settings
from tests.serving.servers import REFUSED, ROOT, Server, await_true, clean_environment, clocktower, json_file

NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
def nowhere() -> Generator[dict[str, str]]:
    """Describe servers that do not answer, with a password that nobody should see."""
    with socket.socket() as bound:
        # Bound and not listening: nobody else can come to listen there while the test runs.
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        yield {
            "CLOCKTOWER_DATABASE_URL": f"postgresql://town:hunter2@127.0.0.1:{port}/town",
            "CLOCKTOWER_REDIS_URL": f"redis://:hunter2@127.0.0.1:{port}/0",
            "CLOCKTOWER_TOKEN_KEY": "t" * 32,
            "CLOCKTOWER_PASS_KEY": "p" * 32,
            "CLOCKTOWER_SEALING_KEY": "s" * 32,
            "CLOCKTOWER_WECHAT_APP_ID": "wx",
            "CLOCKTOWER_WECHAT_APP_SECRET": "secret",
        }


def test_the_table_of_settings_has_every_variable_with_its_limits() -> None:
    table = clocktower("settings").stdout
    missing = [name for name in Settings.model_fields if ENVIRONMENT_PREFIX + name.upper() not in table]
    assert missing == []
    assert len(re.findall(r"│ \(made if embedded\) \*", table)) == len(Settings.model_json_schema()["required"])
    assert "those without a default must be given" in " ".join(table.split())
    assert "≥ 1, ≤ 1000" in table


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("grant", "demo-anna", "king"), "the roles are member, org_rep, staff"),
        (("grant", "demo-anna", "staff", "--scope", "unit:1"), "no --scope or --scope station:ID"),
        (("grant", "demo-anna", "operator", "--scope", f"station:{NOBODY}"), "granted with no --scope."),
        (("grant", "demo-anna", "member"), "--scope group:ID"),
        (("grant", "demo-anna", "operator"), "No server runs on"),
        (("reconcile",), "No server runs on"),
        (("seed",), "No server runs on"),
        (("migrate",), "No server runs on"),
        (("worker",), "No server runs on"),
        (("rehearse", "--parents", "5"), "No server runs on"),
        (("rehearse", "--embedded", "--address", "http://127.0.0.1:1"), "leave the others out"),
        (
            ("rehearse", "--address", "http://127.0.0.1:1", "--release", NOBODY, "--parents", "1"),
            "could not take place",
        ),
        (("rehearse", "--address", "http://127.0.0.1:1", "--json", "/proc/no"), "cannot be written"),
        (("rehearse", "--embedded", "--html", "/proc/no"), "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence_with_status_2(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    refused = clocktower(*arguments, "--data-dir", tmp_path)
    assert refused.returncode == REFUSED
    assert sentence in refused.stderr
    assert "Traceback" not in refused.stderr


def test_doctor_says_what_is_wrong_with_status_1(tmp_path: Path) -> None:
    found = clocktower("doctor", "--data-dir", tmp_path)
    assert found.returncode == 1
    assert "WRONG" in found.stdout
    assert "clocktower serve" in found.stdout


def test_a_running_server_is_seeded_looked_at_and_reconciled(server: Server) -> None:
    at = ("--data-dir", server.data_dir)
    first = clocktower("seed", *at)
    assert (first.returncode, "added 29 units, 29 stations, 90 points" in first.stderr) == (0, True)
    again = clocktower("seed", *at)
    assert (again.returncode, "added 0 units, 0 stations, 0 points" in again.stderr) == (0, True)

    well = clocktower("doctor", *at)
    assert (well.returncode, "WRONG" in well.stdout) == (0, False)

    nobody = clocktower("reconcile", NOBODY, *at)
    assert nobody.returncode == REFUSED
    assert "There is no published release" in nobody.stderr
    nowhere = clocktower("grant", "demo-anna", "staff", "--scope", f"station:{NOBODY}", *at)
    assert nowhere.returncode == REFUSED
    assert "cannot be granted" in nowhere.stderr


def test_a_rehearsal_against_a_running_server_leaves_a_gate_that_agrees(server: Server, tmp_path: Path) -> None:
    at = ("--data-dir", server.data_dir)
    report = tmp_path / "rehearsal.json"
    rehearsed = clocktower("rehearse", *at, "--parents", "60", "--seconds-before", "1", "--json", report)
    assert rehearsed.returncode == 0, rehearsed.stdout + rehearsed.stderr
    verdict = json_file(report)
    assert {name: verdict[name] for name in ("parents", "places", "overbooked", "lost", "leaked")} == {
        "parents": 60,
        "places": 300,
        "overbooked": 0,
        "lost": 0,
        "leaked": 0,
    }
    well = clocktower("doctor", *at)
    assert (well.returncode, "gate and PostgreSQL agree" in well.stdout) == (0, True)
    compared = clocktower("reconcile", "--dry-run", *at)
    assert (compared.returncode, "the gate and PostgreSQL agree" in compared.stdout) == (0, True)


def test_migrations_make_what_the_models_say() -> None:
    checked = clocktower("migrate", "--check", "--embedded")
    assert checked.returncode == 0, checked.stderr


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    there, missing = tmp_path / "there.html", tmp_path / "missing"
    refused = clocktower("rehearse", "--embedded", "--html", there, "--json", missing / "report.json")
    assert (refused.returncode, refused.stderr.count("\n")) == (REFUSED, 1)
    assert f"{missing / 'report.json'} cannot be written" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--operator-code", "wrong"), "The operator's code signs nobody in (status 401, wechat_code_invalid: "),
        (("--operator-code", "demo-nobody"), "clocktower grant <openid> operator"),
        (("--release", NOBODY), f"There is no published release {NOBODY}"),
    ],
)
def test_a_rehearsal_that_cannot_take_place_says_why_before_anybody_signs_in(
    server: Server, arguments: tuple[str, ...], sentence: str
) -> None:
    refused = clocktower("rehearse", "--address", server.address, "--parents", "5", "--seed", "7", *arguments)
    assert refused.returncode == REFUSED
    assert sentence in refused.stderr
    assert "--seed 7 draws the same crowd again" in refused.stderr
    assert "{" not in refused.stderr
    assert refused.stdout == ""


def test_a_role_is_granted_without_redis(server: Server, nowhere: dict[str, str]) -> None:
    given = json_file(server.data_dir / "serve.json")
    at = nowhere | {"CLOCKTOWER_DATABASE_URL": str(given["CLOCKTOWER_DATABASE_URL"])}
    assert clocktower("grant", "demo-without-redis", "operator", env=at).returncode == 0
    assert server.roles_of("demo-without-redis") == ["resident", "operator"]


@pytest.mark.parametrize("command", [("seed",), ("serve", "--port", "0"), ("worker", "--wait-seconds", "0")])
def test_an_engine_that_is_away_is_called_by_its_own_name(
    server: Server, nowhere: dict[str, str], command: tuple[str, ...]
) -> None:
    given = json_file(server.data_dir / "serve.json")
    refused = clocktower(*command, env=nowhere | {"CLOCKTOWER_DATABASE_URL": str(given["CLOCKTOWER_DATABASE_URL"])})
    assert refused.returncode == REFUSED
    assert "Redis at 127.0.0.1" in refused.stderr
    assert "CLOCKTOWER_REDIS_URL" in refused.stderr
    for word in ("PostgreSQL", "hunter2", "Traceback"):
        assert word not in refused.stderr


def test_a_worker_that_reaches_no_server_says_once_which_and_ends_with_status_2(nowhere: dict[str, str]) -> None:
    refused = clocktower("worker", "--wait-seconds", "3", env=nowhere)
    assert refused.returncode == REFUSED
    waiting, given_up = refused.stderr.splitlines()
    assert given_up.startswith("Given up after 3 s: ")
    for line in (waiting, given_up):
        assert "CLOCKTOWER_DATABASE_URL" in line
        assert "CLOCKTOWER_REDIS_URL" in line
        assert "hunter2" not in line


def test_a_worker_that_waits_for_its_servers_can_be_stopped(nowhere: dict[str, str], tmp_path: Path) -> None:
    log_path = tmp_path / "worker.log"
    with log_path.open("wb") as log:
        waiting = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "worker", "--wait-seconds", "3600"],
            cwd=ROOT,
            env=clean_environment(nowhere),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            await_true(lambda: "Trying for" in log_path.read_text())
            waiting.terminate()
            assert waiting.wait(30) == 0
        finally:
            waiting.kill()
            waiting.wait()
    assert log_path.read_text().splitlines()[1:] == ["Stopped before it worked."]
