"""Some rounds, as they are played by hundreds elsewhere, and the command that plays them."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Final

import psutil
import pytest
from typer.testing import CliRunner, Result

from tests.chaos.__main__ import application, deck
from tests.chaos.city import City
from tests.chaos.crowd import Probes
from tests.chaos.engines import SmallDisk, Template
from tests.chaos.faults import FAULTS, Fault, Strike
from tests.chaos.report import Run, again
from tests.chaos.rounds import Outcome, _note_secrets, play, recovery_of
from tests.chaos.stand import left_behind

ROOT: Final = Path(__file__).parents[2]
WAIT_SECONDS_MAX: Final = 60
INTERRUPTED: Final = 130
REFUSED: Final = 2


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["web_killed", "crash_after_commit", "flushall", "postgres_killed"])
async def test_every_promise_holds_through_a_fault(name: str, template: Template, tmp_path: Path) -> None:
    outcome = await play(1, FAULTS[name], seed="test", template=template, directory=tmp_path)
    assert outcome.is_well, (outcome.trouble, outcome.broken, outcome.stories, outcome.last_words)
    assert not outcome.missed
    assert outcome.promised > 0
    assert not (tmp_path / "round-1").exists()


@pytest.mark.anyio
async def test_a_large_release_is_away_for_as_long_as_its_state_takes(tmp_path: Path) -> None:
    city = await asyncio.to_thread(City.found, tmp_path, 3_000, lambda _sentence: None)
    outcome = await city.play(1, FAULTS["flushall"], seed="test", directory=tmp_path)
    assert outcome.is_well, (outcome.trouble, outcome.broken, outcome.last_words)
    assert outcome.promised > 0
    assert outcome.recovery.unavailable_after_s is not None


@pytest.mark.skipif(not SmallDisk.is_possible(), reason="a small file system needs the right to mount it (root)")
def test_a_small_disk_can_be_filled_and_cleared(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "small")
    disk.mount(1 << 20)
    try:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "small" / "more").write_bytes(b"x" * 4_096)
        disk.clear()
        (tmp_path / "small" / "more").write_bytes(b"x" * 4_096)
    finally:
        disk.unmount()


def test_a_seed_draws_the_same_faults_and_each_of_them_once_before_any_comes_again() -> None:
    faults = list(FAULTS.values())
    drawn = [fault.name for fault in islice(deck("7", faults), 2 * len(faults))]
    assert drawn == [fault.name for fault in islice(deck("7", faults), 2 * len(faults))]
    assert drawn != [fault.name for fault in islice(deck("8", faults), 2 * len(faults))]
    assert set(drawn[: len(faults)]) == set(drawn[len(faults) :]) == set(FAULTS)


@pytest.mark.parametrize(
    ("yes_at_s", "during", "after"),
    [
        # From 2 to 4 s something is broken.
        ([0.5, 1.0, 1.5, 2.5, 3.0, 4.2, 4.3], 1.0, 0.2),
        ([1.9, 5.5, 5.6], 2.0, 1.5),
        ([1.9, 4.1, 6.6, 6.7], 2.0, 2.5),
        ([1.0, 1.9], 0.0, None),
    ],
)
def test_a_release_is_away_while_nobody_gets_a_place(
    yes_at_s: list[float], during: float, after: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 1_010.0)
    strike = Strike(began_at=1_002.0, ended_at=1_004.0)
    recovery = recovery_of(Probes(yes_at_s), 10.0, strike, 0.1)
    assert recovery.unavailable_during_s == pytest.approx(during)
    assert recovery.unavailable_after_s == (None if after is None else pytest.approx(after))


def test_a_secret_in_what_the_server_said_breaks_the_round() -> None:
    outcome = Outcome(1, "nothing")
    _note_secrets(outcome, "The redis at redis://127.0.0.1:6379 is away.")
    assert outcome.is_well
    _note_secrets(outcome, "The redis at redis://town:sesame@127.0.0.1:6379 is away.")
    assert outcome.broken == {"no_secret_is_logged": ["a password stands in the log"]}
    assert not outcome.is_well


def command(*arguments: str, directory: Path) -> subprocess.Popen[str]:
    """Start `make chaos`'s command in a directory, in which its rounds are played as well."""
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "tests.chaos", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A group of its own, to which Ctrl-C can be sent as a terminal does it.
        start_new_session=True,
    )


def test_an_unknown_fault_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    process = command("--only", "meteorite,web_killed", directory=tmp_path)
    try:
        said, _ = process.communicate(timeout=WAIT_SECONDS_MAX)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == REFUSED
    assert "meteorite" in said
    assert "web_frozen" in said


def asked(*arguments: str) -> Result:
    """Run the command in this process and directory."""
    return CliRunner().invoke(application, arguments, env={"COLUMNS": "200"})


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[], object]], None]:
    """Change to an empty directory; return what has rounds take no time there, each but the first after an act."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.chaos.__main__.raise_file_limit", lambda: None)

    def make(act: Callable[[], object]) -> None:
        async def play_one(number: int, fault: Fault) -> Outcome:
            if number > 1:
                act()
            return Outcome(number, fault.name, operations=7)

        def player(*_: object) -> Callable[[int, Fault], Awaitable[Outcome]]:
            return play_one

        monkeypatch.setattr("tests.chaos.__main__._player", player)

    return make


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--rounds", "3", "--only-round", "4"), "there is no round 4 of 3"),
        (("--only", "nothing,web_killed", "--only-round", "3"), "there is no round 3 of 2"),
        (("--only", "disk_full"), "no fault is left that can be played here"),
        (("--only", "disk_full", "--rounds", "2"), "no fault is left that can be played here"),
    ],
)
def test_a_run_without_a_round_is_refused_and_not_called_well(
    arguments: tuple[str, ...], sentence: str, played: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    played(raising(AssertionError()))
    monkeypatch.setattr(SmallDisk, "is_possible", lambda: False)
    refused = asked(*arguments)
    assert refused.exit_code == REFUSED
    assert sentence in refused.output
    assert not list(Path.cwd().iterdir())


def test_the_last_round_is_played_alone(played: Callable[..., None]) -> None:
    played(lambda: None)
    assert asked("--rounds", "3", "--only-round", "3").exit_code == 0
    report = json.loads(Path("build/chaos-part.json").read_text("utf-8"))
    assert [one["round"] for one in report["rounds"]] == [3]


def test_a_report_that_cannot_be_written_is_refused_before_anything_starts(
    played: Callable[..., None], tmp_path: Path
) -> None:
    played(lambda: None)
    for report in (tmp_path, tmp_path / "missing" / "chaos.json"):
        refused = asked("--json", str(report))
        assert refused.exit_code == REFUSED
        assert refused.output.splitlines()[-1].startswith(f"{report} cannot be written (")
        # Neither a directory was made, nor a cluster.
        assert "Making a cluster" not in refused.output
        assert not list(tmp_path.iterdir())
    (tmp_path / "build").write_text("no directory")
    refused = asked()
    assert refused.exit_code == REFUSED
    assert "build/chaos.json cannot be written (" in refused.output
    assert "Making a cluster" not in refused.output


@pytest.mark.parametrize(
    ("arguments", "name", "trouble"),
    [
        ((), "chaos.json", None),
        (("--places", "3000"), "chaos-city.json", None),
        (("--only", "nothing,web_killed"), "chaos-part.json", None),
        (("--only", "web_killed,flushall", "--places", "3000"), "chaos-part.json", None),
        ((), "chaos-part.json", KeyboardInterrupt()),
        (("--places", "3000"), "chaos-part.json", asyncio.CancelledError()),
    ],
)
def test_only_what_is_whole_takes_the_place_of_the_last_whole_run(
    arguments: tuple[str, ...], name: str, trouble: BaseException | None, played: Callable[..., None]
) -> None:
    played(raising(trouble) if trouble else lambda: None)
    names = ("chaos.json", "chaos-city.json", "chaos-part.json")
    Path("build").mkdir()
    for one in names:
        (Path("build") / one).write_text("of an earlier run")
    ended = asked(*arguments)
    assert ended.exit_code == (INTERRUPTED if trouble else 0)
    assert [one for one in names if (Path("build") / one).read_text("utf-8") != "of an earlier run"] == [name]
    report = json.loads((Path("build") / name).read_text("utf-8"))
    assert report["trouble"] == ("It was interrupted." if trouble else None)
    assert (", broken off: 1 rounds" in ended.output) is bool(trouble)


def test_an_error_that_nobody_expected_is_shown_and_the_rounds_before_it_are_kept(
    played: Callable[..., None],
) -> None:
    played(raising(TimeoutError("the wire is silent")))
    ended = asked()
    assert ended.exit_code == REFUSED
    assert "Traceback" in ended.output
    report = json.loads(Path("build/chaos-part.json").read_text("utf-8"))
    assert [one["operations"] for one in report["rounds"]] == [7]
    assert report["trouble"] == "An error that nobody expected: TimeoutError('the wire is silent')"
    assert not Path("build/chaos.json").exists()


def test_a_report_that_cannot_be_written_any_more_is_told_beside_the_sum(played: Callable[..., None]) -> None:
    played(lambda: Path("build/chaos.json").mkdir(exist_ok=True))
    ended = asked("--rounds", "2")
    assert ended.exit_code == REFUSED
    assert "build/chaos.json cannot be written (Is a directory)." in ended.output
    assert "Seed 1: 2 rounds" in ended.output


@pytest.mark.parametrize(
    ("run", "options"),
    [
        (Run("7", [FAULTS["nothing"]], 200), ["--seed", "7", "--rounds", "200"]),
        (
            Run("a b", [FAULTS["nothing"], FAULTS["flushall"]], 2, is_of_some=True),
            ["--seed", "a b", "--rounds", "2", "--only", "nothing,flushall"],
        ),
        (
            Run("it's $HOME; (x)", [FAULTS["nothing"]], 30, only_round=13, places=3_000),
            ["--seed", "it's $HOME; (x)", "--rounds", "30", "--only-round", "13", "--places", "3000"],
        ),
        (Run("", [FAULTS["nothing"]], 1), ["--seed", "", "--rounds", "1"]),
    ],
)
def test_the_command_that_is_printed_plays_the_same_again(run: Run, options: list[str]) -> None:
    said = subprocess.run(  # noqa: S602 - the line is one for a shell
        f"{again(run)} --dry-run",
        shell=True,
        cwd=ROOT,
        # Nothing of a make that runs the tests: its variables would be those of this one, too.
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    # What would make the environment, if it is to be made, comes before.
    assert shlex.split(said.stdout.splitlines()[-1]) == [".venv/bin/python", "-m", "tests.chaos", *options]


@pytest.mark.parametrize(
    ("number", "arguments"),
    # The first fault of seed 5 is postgres_restarted.
    [(signal.SIGINT, ("--only", "nothing")), (signal.SIGTERM, ("--seed", "5"))],
)
def test_a_run_that_is_stopped_says_so_keeps_what_it_has_and_leaves_nothing(
    number: signal.Signals, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    process = command(*arguments, "--rounds", "9", directory=tmp_path)
    assert process.stdout is not None
    try:
        while "1 of 9" not in (line := process.stdout.readline()):
            assert line, "it ended before the first round did"
        family = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        said, _ = process.communicate(timeout=WAIT_SECONDS_MAX)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == INTERRUPTED
    assert "It was interrupted." in said
    # Whichever run it was, it is none that is whole.
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["chaos-part.json"]
    report = json.loads((tmp_path / "build" / "chaos-part.json").read_text("utf-8"))
    assert len(report["rounds"]) == 1
    assert report["trouble"] == "It was interrupted."
    _, alive = psutil.wait_procs(family, timeout=WAIT_SECONDS_MAX)
    assert not alive
    # Nor what was only being started.
    assert not left_behind(tmp_path)
