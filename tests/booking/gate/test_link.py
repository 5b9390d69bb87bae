"""Connections to Redis are closed when the gate is, whoever still wants one."""

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from app.booking.gate.link import Links
from app.core.settings import Settings

pytestmark = pytest.mark.anyio


async def test_after_closing_no_connection_is_made(settings: Settings) -> None:
    links = Links(settings, 1)
    async with links.lend() as link:
        assert link.identity
    await links.close()
    with pytest.raises(RedisConnectionError):
        async with links.lend():
            pass
    assert not link.identity


async def test_a_connection_made_while_closing_is_closed_at_its_return(settings: Settings) -> None:
    links = Links(settings, 1)
    async with links.lend() as link:
        await links.close()
        await link.connect()
        assert link.identity
    assert not link.identity
