"""Parents as these tests know them: accounts that sign in over the API and register children."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts import service
from app.accounts.policy import Role, ScopeKind
from app.core.db import transaction
from app.core.ids import new_id

Json = dict[str, Any]

_numbers = itertools.count()

CHILD: Mapping[str, Any] = {
    "nickname": "小满",
    "birth_month": "2016-05",
    "relation": "child",
    "resident_unit_id": None,
    "consent": {"version": "2026-09", "purposes": ["booking"]},
}


@dataclass(frozen=True, slots=True)
class Parent:
    """A signed-in account and what its phone does."""

    client: httpx2.AsyncClient
    openid: str
    account_id: UUID
    access_token: str
    refresh_token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access_token}"}

    async def get(self, path: str) -> httpx2.Response:
        return await self.client.get(path, headers=self.headers)

    async def post(self, path: str, body: object = None) -> httpx2.Response:
        return await self.client.post(path, headers=self.headers, json=body)

    async def put(self, path: str, body: object) -> httpx2.Response:
        return await self.client.put(path, headers=self.headers, json=body)

    async def delete(self, path: str) -> httpx2.Response:
        return await self.client.delete(path, headers=self.headers)

    async def register(self, **changes: object) -> Json:
        """Register a child and return it as it was answered."""
        response = await self.post("/v1/me/people", {**CHILD, **changes})
        assert response.status_code == 201, response.text
        return response.json()

    async def invite(self, person_id: str) -> str:
        """Invite a guardian and return the token."""
        response = await self.post(f"/v1/me/people/{person_id}/invitations")
        assert response.status_code == 201, response.text
        return response.json()["token"]

    async def accept(self, token: str, *, relation: str = "child") -> httpx2.Response:
        """Accept an invitation."""
        return await self.post(
            "/v1/me/invitations/accept", {"token": token, "relation": relation, "consent": CHILD["consent"]}
        )


def fresh_name(word: str = "parent") -> str:
    """Return an open id that no other test of this run uses."""
    return f"demo-{word}-{new_id().hex[-8:]}-{next(_numbers)}"


async def sign_in(client: httpx2.AsyncClient, openid: str | None = None) -> Parent:
    """Sign a parent in; the fake WeChat gives the code back as the open id."""
    openid = openid or fresh_name()
    response = await client.post("/v1/auth/wechat", json={"code": openid})
    assert response.status_code == 200, response.text
    told = response.json()
    return Parent(client, openid, UUID(told["account"]["id"]), told["access_token"], told["refresh_token"])


async def sign_in_as(
    client: httpx2.AsyncClient,
    engine: AsyncEngine,
    role: Role,
    scope_kind: ScopeKind | None = None,
    scope_id: UUID | None = None,
) -> Parent:
    """Sign somebody in who has been granted a role, as the command line does it."""
    parent = await sign_in(client, fresh_name(role.value))
    async with transaction(engine) as db:
        await service.grant_role_by_openid(
            db,
            openid=parent.openid,
            role=role,
            scope_kind=scope_kind,
            scope_id=scope_id,
            now=(await db.execute(text("SELECT now()"))).scalar_one(),
        )
    return parent


async def one(engine: AsyncEngine, statement: str, **parameters: object) -> Any:
    """Return the only value of a statement, read on a connection of its own."""
    async with engine.connect() as connection:
        return (await connection.execute(text(statement), parameters)).scalar_one()


async def write(engine: AsyncEngine, statement: str, **parameters: object) -> None:
    """Write past the API what time or an operator would have written, and commit."""
    async with engine.begin() as connection:
        await connection.execute(text(statement), parameters)


def code_of(response: httpx2.Response) -> str:
    """Return the code of a refusal, having checked that it is a problem document."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document = response.json()
    assert document["status"] == response.status_code
    return document["code"]
