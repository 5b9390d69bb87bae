"""A family with an account, a phone and a pass, talking to the whole application."""

from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import httpx2
import pytest

from app.booking.gate.passes import PassSigner
from app.core.auth import verify_access_token
from app.core.clock import Clock
from app.core.settings import Settings
from tests.booking.gate.builders import MadeRelease, Phone
from tests.conftest import SignIn


@dataclass(frozen=True, slots=True)
class Family:
    """A signed-in account with a phone."""

    phone: Phone
    headers: dict[str, str]
    client: httpx2.AsyncClient

    async def grab(self, *ordinals: int, **wishes: Any) -> httpx2.Response:
        """Send a claim."""
        request = self.phone.claim(*ordinals, **wishes)
        return await self.client.put(request.path, content=request.body, headers=self.phone.headers)

    async def read(self, path: str) -> httpx2.Response:
        """Read as this account."""
        return await self.client.get(path, headers=self.headers)

    async def give_back(self, path: str) -> httpx2.Response:
        """Delete as this account."""
        return await self.client.delete(path, headers=self.headers)


class MakeFamily(Protocol):
    """Makes a family with a pass for this release."""

    def __call__(self, name: str, made: MadeRelease, *, people: int = 1) -> Awaitable[Family]: ...


@pytest.fixture
async def db(database_url: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def make_family(settings: Settings, client: httpx2.AsyncClient, sign_in: SignIn) -> MakeFamily:
    signer = PassSigner(settings.pass_key.get_secret_value())

    async def make(name: str, made: MadeRelease, *, people: int = 1) -> Family:
        headers = await sign_in(name)
        key = settings.token_key.get_secret_value().encode()
        account: UUID = verify_access_token(
            headers["Authorization"].removeprefix("Bearer "), key=key, now_ms=Clock().now_ms()
        )
        return Family(Phone.with_pass(signer, made, people=people, account=account), headers, client)

    return make
