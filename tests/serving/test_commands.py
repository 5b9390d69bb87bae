from pathlib import Path

import pytest

from app.core.settings import ENVIRONMENT_PREFIX, Settings
from tests.serving.servers import REFUSED, Server, clocktower, json_file

NOBODY = "00000000-0000-7000-8000-000000000000"


def test_the_table_of_settings_has_every_variable_with_its_limits() -> None:
    table = clocktower("settings").stdout
    missing = [name for name in Settings.model_fields if ENVIRONMENT_PREFIX + name.upper() not in table]
    assert missing == []
    assert "(must be given)" in table
    assert "≥ 1, ≤ 1000" in table


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("grant", "demo-anna", "king"), "the roles are member, org_rep, staff"),
        (("grant", "demo-anna", "staff", "--scope", "unit:1"), "no --scope or --scope station:ID"),
        (("grant", "demo-anna", "operator", "--scope", f"station:{NOBODY}"), "granted with no --scope."),
        (("grant", "demo-anna", "member"), "--scope group:ID"),
        (("grant", "demo-anna", "operator"), "No server runs on"),
        (("reconcile",), "Say which release, or --all."),
        (("reconcile", NOBODY, "--all"), "Say which release, or --all."),
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
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence_with_status_2(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    data_dir = () if "reconcile" in arguments else ("--data-dir", tmp_path)
    refused = clocktower(*arguments, *data_dir)
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
    rebuilt = clocktower("reconcile", "--all", *at)
    assert (rebuilt.returncode, "gate after" in rebuilt.stdout) == (0, True)


def test_migrations_make_what_the_models_say() -> None:
    checked = clocktower("migrate", "--check", "--embedded")
    assert checked.returncode == 0, checked.stderr
