"""A run of the tests that is interrupted leaves no engine behind, in however many processes it was."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.serving.servers import await_true, engines_in

ROOT: Final = Path(__file__).parents[1]
# Says that it has engines, and in which process group it is.
WAITING: Final = """
import os, pathlib, time

def test_waiting(engines):
    pathlib.Path(__file__).with_suffix(".group").write_text(f"{os.getpgrp()}\\n")
    time.sleep(60)
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_ctrl_c_leaves_no_engine_behind(processes: int, tmp_path: Path) -> None:
    files = [tmp_path / f"test_{number}.py" for number in range(max(processes, 1))]
    for file in files:
        file.write_text(WAITING, "utf-8")
    inner = tmp_path / "r"
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", f"--rootdir={tmp_path}", f"--basetemp={inner}"]
    command += ["-c", str(ROOT / "pyproject.toml"), "-n", str(processes), "--dist", "loadfile", *map(str, files)]
    with subprocess.Popen(  # noqa: S603 - our own interpreter, arguments made here
        # A group of its own, to which Ctrl-C is sent as a terminal does it.
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as run:
        try:
            groups = [file.with_suffix(".group") for file in files]
            await_true(lambda: all(group.exists() and group.read_text("utf-8").endswith("\n") for group in groups))
            assert engines_in(inner)
            # Heard twice, an interrupt may end a process before its engines: of several, the first alone may hear it.
            hear_it = [int(group.read_text("utf-8")) == run.pid for group in groups]
            assert hear_it == [processes == 0] * len(files)
            os.killpg(run.pid, signal.SIGINT)
            assert run.wait(60) == pytest.ExitCode.INTERRUPTED
            await_true(lambda: not engines_in(inner))
        finally:
            run.kill()
            for process in engines_in(inner):
                # The end of one is that of others.
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
