"""Whoever is asked which server holds what may say anything: then somebody else is believed, or nobody is there."""

from typing import Any

import pytest
from pydantic import SecretStr
from redis.exceptions import ConnectionError as RedisConnectionError

from app.booking.gate.topology import Topology
from app.core.settings import Settings

pytestmark = pytest.mark.anyio

_CLUSTER = "redis+cluster://127.0.0.1:1"
_SENTINELS = "redis+sentinel://127.0.0.1:1/town"
_SLOTS: list[Any] = [[0, 16_383, [b"127.0.0.1", 2, b"id"]]]
_PRIMARY: dict[bytes, bytes] = {
    b"flags": b"master",
    b"ip": b"127.0.0.1",
    b"port": b"2",
    b"config-epoch": b"7",
    b"name": b"town",
}


_ANSWERS: list[tuple[str, list[Any]]] = [
    (_CLUSTER, [b"cluster_state:ok", _SLOTS]),
    (_CLUSTER, [b"cluster_current_epoch:many", _SLOTS]),
    (_CLUSTER, [b"cluster_current_epoch:7", [[0, 16_383, [b"127.0.0.1"]]]]),
    (_CLUSTER, [b"cluster_current_epoch:7", [[0]]]),
    (_CLUSTER, [b"cluster_current_epoch:7", None]),
    (_SENTINELS, [{}]),
    (_SENTINELS, [_PRIMARY | {b"port": b""}]),
    (_SENTINELS, [{name: value for name, value in _PRIMARY.items() if name != b"config-epoch"}]),
    (_SENTINELS, []),
]


@pytest.mark.parametrize(("url", "replies"), _ANSWERS)
async def test_an_answer_that_cannot_be_understood_is_none(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, url: str, replies: list[Any]
) -> None:
    async def say(*_asked: object) -> list[Any]:
        return replies

    monkeypatch.setattr(Topology, "_replies", say)
    topology = Topology(settings.model_copy(update={"redis_url": SecretStr(url)}))
    with pytest.raises(RedisConnectionError, match="cannot be understood"):
        await topology.look()
