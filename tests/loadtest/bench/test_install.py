import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from loadtest.bench import install as module
from loadtest.bench.install import install
from loadtest.bench.machine import CannotBenchError
from loadtest.bench.peers import CannotRunPeerError, Peer


class _Lacking:
    def __init__(self, missing: str) -> None:
        self._missing = missing

    def install(self, progress: Callable[[str], None]) -> None:
        progress("Installing")
        raise CannotRunPeerError(self._missing)


@pytest.mark.anyio
async def test_all_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_wrk(_say: Callable[[str], None]) -> str:
        await asyncio.sleep(0)
        raise CannotBenchError("wrk is missing.")

    monkeypatch.setattr(module, "require_wrk", no_wrk)
    said: list[str] = []
    lacking = [cast("Peer", _Lacking(f"{name} was not found.")) for name in ("npm", "psql")]
    with pytest.raises(CannotBenchError) as caught:
        await install(lacking, said.append)
    assert str(caught.value).splitlines() == ["wrk is missing.", "npm was not found.", "psql was not found."]
    assert said == ["Installing"] * 2
