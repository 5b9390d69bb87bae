"""Some rounds, as they are played by hundreds elsewhere, and the command that plays them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.chaos.__main__ import deck
from tests.chaos.city import City
from tests.chaos.crowd import Probes
from tests.chaos.engines import SmallDisk, Template
from tests.chaos.faults import FAULTS, Strike
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_so_keeps_what_it_has_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = command("--only", "nothing", "--rounds", "9", directory=tmp_path)
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
    assert len(json.loads((tmp_path / "build" / "chaos-part.json").read_text("utf-8"))["rounds"]) == 1
    _, alive = psutil.wait_procs(family, timeout=WAIT_SECONDS_MAX)
    assert not alive
    # Nor what was only being started.
    assert not left_behind(tmp_path)
