"""The whole application on a real socket, with a small town in it."""

import asyncio
from collections.abc import AsyncGenerator, Generator

import httpx2
import pytest

from app.core.embedded import Engines
from app.core.settings import Settings
from app.main import create_app
from tests.booking.gate.conftest import db, signer
from tests.conftest import make_settings, serving
from tests.contract.conftest import address, client, line, made
from tests.security.town import Town, build_town

# Those of the contract: the application carried in each of the two ways.
__all__ = ["address", "client", "db", "line", "made", "signer"]

_PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
def town_settings(database_url: str, engines: Engines, fake_wechat_url: str) -> Settings:
    return make_settings(database_url, engines.redis_url, fake_wechat_url).model_copy(
        # The limits have tests of their own; here every request must get through.
        update={
            "rate_limit_per_minute": 1_000_000,
            "sign_in_limit_per_minute": 1_000_000,
            "invitation_limit_per_minute": 100_000,
        }
    )


@pytest.fixture(scope="module")
def town(town_settings: Settings) -> Generator[Town]:
    with serving(lambda: create_app(town_settings)) as address:
        yield asyncio.run(build_town(address, town_settings))


@pytest.fixture
async def phone(town: Town) -> AsyncGenerator[httpx2.AsyncClient]:
    limits = httpx2.Limits(max_keepalive_connections=len(town.callers))
    async with httpx2.AsyncClient(base_url=town.address, timeout=_PATIENCE_SECONDS, limits=limits) as connected:
        yield connected
