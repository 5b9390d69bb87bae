"""What the bench needs from elsewhere is asked for before anything is measured."""

from pathlib import Path

import pytest

from loadtest.bench.install import install
from loadtest.bench.machine import CannotBenchError
from loadtest.bench.peers.bare import BARE
from loadtest.bench.peers.fastify import FASTIFY


@pytest.mark.anyio
async def test_all_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A machine without any program: neither wrk, nor apt-get to install it, nor Node.
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotBenchError) as caught:
        await install([BARE, FASTIFY], lambda _sentence: None)
    wrk, node = str(caught.value).splitlines()
    assert wrk.startswith("The load generator wrk is missing")
    assert node.startswith("Node.js was not found")
