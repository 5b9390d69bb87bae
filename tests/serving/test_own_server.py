"""A server of one's own: whatever happens while it is started, it is known, and ended."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.cli import own_server
from app.cli.own_server import OwnServer


def test_an_interrupt_between_start_and_knowledge_of_a_server_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start_and_be_interrupted(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        process: subprocess.Popen[bytes] = popen(*arguments, **options)
        started.append(process)
        signal.raise_signal(signal.SIGINT)
        return process

    popen: Any = subprocess.Popen
    monkeypatch.setattr(own_server.subprocess, "Popen", start_and_be_interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            OwnServer.start(tmp_path / "data", port=0, workers=1, log_path=tmp_path / "serve.log")
        # Waited for, not left to find out by itself.
        assert [process.returncode is not None for process in started] == [True]
    finally:
        for process in started:
            process.kill()
            process.wait()
