"""The counts of states stand at the end of a run, also where the processes that made them were others."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]


@pytest.mark.parametrize("processes", ["0", "2"])
def test_the_states_gone_through_are_counted_at_the_end_of_a_run(processes: str) -> None:
    command = [sys.executable, "-m", "pytest", "-n", processes, "tests/model/test_protocol.py", "-k", "hangs"]
    done = subprocess.run(  # noqa: S603 - our own interpreter, arguments made here
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    _, _, summary = done.stdout.partition("the seat protocol as a model")
    assert " states, " in summary, done.stdout
