"""What the bench needs from elsewhere is asked for before anything is measured."""

from pathlib import Path

import pytest

from loadtest.bench.install import install
from loadtest.bench.machine import CannotBenchError
from loadtest.bench.peers.bare import BARE
from loadtest.bench.peers.fastify import FASTIFY
from loadtest.bench.wrk import require_wrk


@pytest.mark.anyio
async def test_all_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A machine without any program: neither wrk, nor apt-get to install it, nor Node.
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotBenchError) as caught:
        await install([BARE, FASTIFY], lambda _sentence: None)
    wrk, node = str(caught.value).splitlines()
    assert wrk.startswith("The load generator wrk is missing")
    assert node.startswith("Node.js was not found")


@pytest.mark.anyio
async def test_what_apt_get_has_to_say_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text('#!/bin/sh\necho "E: $2 is not to be had" >&2\nexit 100\n')
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    # It is asked by root alone.
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(CannotBenchError, match="E: install is not to be had"):
        await require_wrk(lambda _sentence: None)
