"""The whole application on a real socket, carried in each of the two ways: over ASGI, and straight from the socket."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import Final

import asyncpg
import httpx2
import pytest

from app.booking.gate.protocol import GateProtocol
from app.core.embedded import Engines
from app.core.web.protocol import ProblemProtocol
from app.main import create_api, with_gate_in_front
from tests.booking.gate.builders import MadeRelease, make_release
from tests.booking.gate.conftest import db, signer
from tests.conftest import make_settings, serving
from tests.contract.line import Line, connected, message

__all__ = ["db", "signer"]

# Whatever one of them answers, the other has to answer as well.
CARRIERS: Final[dict[str, type[asyncio.Protocol]]] = {"over ASGI": ProblemProtocol, "from the socket": GateProtocol}


@pytest.fixture(scope="module", params=CARRIERS)
def address(
    request: pytest.FixtureRequest, engines: Engines, database_url: str, fake_wechat_url: str
) -> Generator[str]:
    """Serve in each of the two ways; everything that asks for this is run with both."""
    settings = make_settings(database_url, engines.redis_url, fake_wechat_url)
    carrier = CARRIERS[request.param]
    with serving(lambda: with_gate_in_front(create_api(settings), settings), carrier=carrier) as served_at:
        yield served_at


@pytest.fixture
async def line(address: str) -> AsyncGenerator[Line]:
    async with connected(address) as phone_line:
        yield phone_line


@pytest.fixture
async def client(address: str) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=address) as connected_client:
        yield connected_client


@pytest.fixture
async def made(address: str, redis_url: str, db: "asyncpg.Connection[asyncpg.Record]") -> MadeRelease:
    """Make a release that the server has entered: its claims go the quick way."""
    assert redis_url
    release = await make_release(db, capacities=(30, 5))
    async with connected(address) as other:
        seen = await other.ask(message("GET", f"/v1/releases/{release.release_id}/availability"))
        assert seen.status == 200
    return release
