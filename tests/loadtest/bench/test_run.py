"""The bench as a command: what it keeps when it is stopped, and what it does without."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil
import pytest

from app.core.settings import ENVIRONMENT_PREFIX

ROOT: Final = Path(__file__).parents[3]
INTERRUPTED: Final = 130
WAIT_SECONDS_MAX: Final = 120


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the bench needs Linux")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_before_a_stop_is_kept_beside_the_last_whole_run(
    number: signal.Signals, tmp_path: Path
) -> None:
    whole = tmp_path / "build" / "bench.json"
    whole.parent.mkdir()
    whole.write_text("the last whole run")
    settings = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    # Neither wrk nor apt-get is there: these parts need neither.
    environment = settings | {"PYTHONPATH": str(ROOT), "PATH": str(tmp_path)}
    bench = subprocess.Popen(
        [sys.executable, "-m", "loadtest.bench", "--quick", "--only", "opening,start"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # A group of its own, to which Ctrl-C can be sent as a terminal does it.
        start_new_session=True,
    )
    try:
        assert bench.stdout is not None
        while "Opening 1 of 1" not in (line := bench.stdout.readline()):
            assert line, "it ended before the opening"
        family = psutil.Process(bench.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(bench.pid, number)
        else:
            bench.send_signal(number)
        said, _ = bench.communicate(timeout=WAIT_SECONDS_MAX)
    finally:
        bench.kill()
        bench.wait()
    assert bench.returncode == INTERRUPTED
    assert "The bench broke off: " in said
    report = json.loads((tmp_path / "build" / "bench-part.json").read_text("utf-8"))
    assert [row["id"] for row in report["rows"]] == ["P12", "P12b"]
    assert report["finished"] == ["start"]
    assert report["trouble"] == "It was interrupted."
    assert not report["all_met"]
    assert whole.read_text() == "the last whole run"
    _, alive = psutil.wait_procs(family, timeout=WAIT_SECONDS_MAX)
    assert not alive
