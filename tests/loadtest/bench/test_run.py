"""The bench as a command: what it keeps when it is stopped, and what it does without."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import pytest
from typer.testing import CliRunner, Result

from app.core.settings import ENVIRONMENT_PREFIX
from loadtest.bench.results import Row, Spread, value_at_most

ROOT: Final = Path(__file__).parents[3]
INTERRUPTED: Final = 130
REFUSED: Final = 2
WAIT_SECONDS_MAX: Final = 120
# The rehearsal itself, its server and the engines: fewer are only on their way.
REHEARSING_PROCESSES: Final = 4

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the bench needs Linux"),
    # Longer than its waits, so that they can say what did not come.
    pytest.mark.timeout(400),
]


@contextmanager
def bench(directory: Path, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """Run the bench in a directory, where it finds neither wrk nor apt-get."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "loadtest.bench", *arguments],
        cwd=directory,
        # What it writes, a rehearsal's log and data among it, stays in the directory.
        env=settings | {"PYTHONPATH": str(ROOT), "PATH": str(directory), "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        text=True,
        # A group of its own, to which Ctrl-C can be sent as a terminal does it.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stop_at(process: subprocess.Popen[str], words: str, number: signal.Signals, *, processes: int) -> str:
    """Stop the bench once it says these words and has so many processes, none of which may stay; return its last."""
    assert process.stdout is not None
    while words not in (line := process.stdout.readline()):
        assert line, f"it ended before it said {words!r}"
    family = family_of(process, at_least=processes)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said, _ = process.communicate(timeout=WAIT_SECONDS_MAX)
    assert process.returncode == INTERRUPTED
    assert "The bench broke off: " in said
    _, alive = psutil.wait_procs(family, timeout=WAIT_SECONDS_MAX)
    assert not alive
    return said


def family_of(process: subprocess.Popen[str], *, at_least: int) -> Sequence[psutil.Process]:
    """Return the processes below this one, once there are so many."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while len(family := psutil.Process(process.pid).children(recursive=True)) < at_least:
        assert time.monotonic() < deadline, f"only {family} started"
        time.sleep(0.05)
    return family


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_before_a_stop_is_kept_beside_the_last_whole_run(
    number: signal.Signals, tmp_path: Path
) -> None:
    whole = tmp_path / "build" / "bench.json"
    whole.parent.mkdir()
    whole.write_text("the last whole run")
    with bench(tmp_path, "--quick", "--only", "opening,start") as process:
        stop_at(process, "Opening 1 of", number, processes=1)
    report = json.loads((tmp_path / "build" / "bench-part.json").read_text("utf-8"))
    assert [row["id"] for row in report["rows"]] == ["P12", "P12b"]
    assert report["finished"] == ["start"]
    assert report["trouble"] == "It was interrupted."
    assert not report["all_met"]
    assert whole.read_text() == "the last whole run"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rehearsal_ends_with_its_bench(number: signal.Signals, tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "opening") as process:
        said = stop_at(process, "Opening 1 of", number, processes=REHEARSING_PROCESSES)
    assert "no target was measured" in said


def test_a_quick_run_judges_the_second_of_the_opening(tmp_path: Path) -> None:
    with bench(tmp_path, "--quick", "--only", "opening") as process:
        said, _ = process.communicate(timeout=WAIT_SECONDS_MAX)
    report = json.loads((tmp_path / "build" / "bench-part.json").read_text("utf-8"))
    assert report["finished"] == ["opening"], said
    rows = {row["id"]: row for row in report["rows"]}
    assert rows["P6"]["target"] == "≤ 1 s"
    assert rows["P7"]["target"] == "≤ 1.5 s"
    assert all(row["met"] is not None for row in rows.values())
    assert "passes signed before" in rows["P6"]["note"]


def asked(*arguments: str) -> Result:
    """Run the bench in this process and directory."""
    from loadtest.bench.__main__ import application  # noqa: PLC0415 - it loads every peer

    return CliRunner().invoke(application, arguments, env={"COLUMNS": "200"})


def start_takes_no_time(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object] = lambda: None) -> None:
    """Have the part `start` find something out at once, after an act."""

    async def start_up(**_: object) -> list[Row]:
        act()
        return [Row("P12", "first answer", "s", Spread.of([2.0]), value_at_most(4))]

    monkeypatch.setattr("loadtest.bench.__main__.start_up", start_up)


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    begun: list[bool] = []
    start_takes_no_time(monkeypatch, lambda: begun.append(True))
    for report in (tmp_path, tmp_path / "missing" / "bench.report"):
        refused = asked("--only", "start", option, str(report))
        assert refused.exit_code == REFUSED
        assert refused.output.startswith(f"{report} cannot be written (")
        assert refused.output.count("\n") == 1
        # No directory was made.
        assert not list(tmp_path.iterdir())
    (tmp_path / "build").write_text("no directory")
    refused = asked("--only", "start", option, str(tmp_path / "bench.report"))
    assert refused.exit_code == REFUSED
    assert refused.output.startswith("build/bench.")
    assert not begun


def test_an_error_that_nobody_expected_is_shown_and_what_was_measured_before_it_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def opening(**_: object) -> list[Row]:
        raise TimeoutError("the wire is silent")

    monkeypatch.chdir(tmp_path)
    start_takes_no_time(monkeypatch)
    monkeypatch.setattr("loadtest.bench.__main__.opening", opening)
    ended = asked("--only", "start,opening")
    assert ended.exit_code == REFUSED
    assert "Traceback" in ended.output
    report = json.loads((tmp_path / "build" / "bench-part.json").read_text("utf-8"))
    assert report["finished"] == ["start"]
    assert [row["id"] for row in report["rows"]] == ["P12"]
    assert report["trouble"] == "An error that nobody expected: TimeoutError('the wire is silent')"


def test_a_report_that_cannot_be_written_any_more_is_told_beside_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    start_takes_no_time(monkeypatch, Path("build/bench-part.json").mkdir)
    ended = asked("--only", "start")
    assert ended.exit_code == REFUSED
    assert "first answer" in ended.output
    assert "A report cannot be written: " in ended.output
