"""Fetching a pass over the API."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.passes import PassSigner
from app.core.auth import verify_access_token
from app.core.clock import Clock
from app.core.problems import TokenExpired
from app.core.settings import Settings
from tests.booking.gate.builders import MadeRelease, make_release
from tests.conftest import SignIn

pytestmark = pytest.mark.anyio


@pytest.fixture
async def made(database_url: str) -> AsyncGenerator[MadeRelease]:
    db = await asyncpg.connect(database_url)
    try:
        yield await make_release(db, capacities=(1, 1))
    finally:
        await db.close()


async def register(client: httpx2.AsyncClient, headers: dict[str, str]) -> str:
    """Register a child of this account; return its id."""
    body = {
        "nickname": "儿童丙0021",
        "birth_month": "2016-05",
        "relation": "child",
        "resident_unit_id": None,
        "consent": {"version": "2026-01", "purposes": ["booking"]},
    }
    answer = await client.post("/v1/me/people", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_a_pass_names_the_family_and_the_pools_and_is_ours(
    client: httpx2.AsyncClient, sign_in: SignIn, settings: Settings, made: MadeRelease
) -> None:
    headers = await sign_in("anna")
    person = await register(client, headers)

    answer = await client.post(f"/v1/releases/{made.release_id}/pass", json={"people": [person]}, headers=headers)

    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert shown["people"] == [{"id": person, "pools": [str(pool) for pool in made.pools], "refused": [], "delay_s": 0}]
    contents = PassSigner(settings.pass_key.get_secret_value()).verify(shown["pass"].encode())
    assert contents.release == made.release_id.bytes
    assert {"expires_at", "opens_at", "server_time"} <= shown.keys()


async def test_a_pass_for_other_peoples_children_cannot_be_had(
    client: httpx2.AsyncClient, sign_in: SignIn, made: MadeRelease
) -> None:
    theirs = await register(client, await sign_in("bertha"))
    headers = await sign_in("carla")
    mine = await register(client, headers)

    for people, index in (([theirs], 0), ([mine, theirs], 1), ([str(uuid4())], 0)):
        answer = await client.post(f"/v1/releases/{made.release_id}/pass", json={"people": people}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_person")
        assert answer.json()["errors"][0]["field"] == f"people[{index}]"
        assert "pass" not in answer.json()


async def test_a_blocked_account_gets_nothing_new_and_what_it_has_expires_in_time(
    client: httpx2.AsyncClient,
    sign_in: SignIn,
    settings: Settings,
    made: MadeRelease,
    engine: AsyncEngine,
) -> None:
    headers = await sign_in("elsa")
    person = await register(client, headers)
    path, body = f"/v1/releases/{made.release_id}/pass", {"people": [person]}
    shown = (await client.post(path, json=body, headers=headers)).json()
    account_id = PassSigner(settings.pass_key.get_secret_value()).verify(shown["pass"].encode()).account
    async with engine.begin() as connection:
        block = text("UPDATE account SET blocked_at = now() WHERE id = :id")
        await connection.execute(block, {"id": UUID(bytes=account_id)})

    refused = await client.post(path, json=body, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (404, "unknown_person")
    assert "pass" not in refused.json()

    had = datetime.fromisoformat(shown["expires_at"]) - datetime.fromisoformat(shown["server_time"])
    assert had <= timedelta(hours=settings.pass_hours)
    token = headers["Authorization"].partition(" ")[2]
    key, now_ms = settings.token_key.get_secret_value().encode(), Clock().now_ms()
    assert verify_access_token(token, key=key, now_ms=now_ms)
    with pytest.raises(TokenExpired):
        verify_access_token(token, key=key, now_ms=now_ms + settings.access_token_seconds * 1000)


async def test_a_pass_for_a_release_that_is_not_published_cannot_be_had(
    client: httpx2.AsyncClient, sign_in: SignIn
) -> None:
    headers = await sign_in("dora")
    person = await register(client, headers)
    answer = await client.post(f"/v1/releases/{uuid4()}/pass", json={"people": [person]}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_many_phones_that_send_an_idempotency_key_do_not_wait_for_each_other_for_ever(
    client: httpx2.AsyncClient, sign_in: SignIn, settings: Settings, made: MadeRelease
) -> None:
    headers = await sign_in("emma")
    person = await register(client, headers)

    async def fetch(number: int) -> int:
        keyed = headers | {"Idempotency-Key": f"pass-{number}"}
        answer = await client.post(f"/v1/releases/{made.release_id}/pass", json={"people": [person]}, headers=keyed)
        return answer.status_code

    phones = 4 * settings.database_pool_size
    assert await asyncio.gather(*(fetch(number) for number in range(phones))) == [200] * phones
