"""Refresh tokens: each is good once, a lost reply is forgiven, a stolen one ends the sign-in."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts import jobs
from app.accounts.policy import REFRESH_SIBLINGS_MAX
from app.core.db import transaction
from tests.accounts.parents import code_of, one, sign_in, write

pytestmark = pytest.mark.anyio

# Beyond the grace of ten seconds.
_LATER = "UPDATE refresh_token SET used_at = used_at - interval '11 seconds' WHERE account_id = :id"
_LIVE = "SELECT count(*) FROM refresh_token WHERE account_id = :id AND revoked_at IS NULL"


async def refresh(client: httpx2.AsyncClient, token: str) -> httpx2.Response:
    return await client.post("/v1/auth/refresh", json={"refresh_token": token})


async def refreshed(client: httpx2.AsyncClient, token: str) -> Mapping[str, Any]:
    response = await refresh(client, token)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, code_of(response)


async def test_a_refresh_gives_the_shape_of_a_sign_in_for_the_same_account(client: httpx2.AsyncClient) -> None:
    parent = await sign_in(client)
    told = await refreshed(client, parent.refresh_token)
    assert set(told) == {"access_token", "token_type", "expires_in", "refresh_token", "account"}
    assert told["account"] == {"id": str(parent.account_id), "roles": ["resident"]}
    assert told["refresh_token"] != parent.refresh_token
    me = await client.get("/v1/me", headers={"Authorization": f"Bearer {told['access_token']}"})
    assert me.json()["id"] == str(parent.account_id)


async def test_a_used_token_ends_the_whole_sign_in_and_that_is_committed_although_the_answer_is_a_refusal(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    parent = await sign_in(client)
    newest = (await refreshed(client, parent.refresh_token))["refresh_token"]
    await write(engine, _LATER, id=parent.account_id)
    assert refusal(await refresh(client, parent.refresh_token)) == (401, "refresh_token_reused")
    assert await one(engine, _LIVE, id=parent.account_id) == 0
    assert refusal(await refresh(client, newest)) == (401, "refresh_token_invalid")


async def test_reuse_ends_one_sign_in_and_not_those_of_other_phones(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    stolen = await sign_in(client)
    other_phone = await sign_in(client, stolen.openid)
    await refreshed(client, stolen.refresh_token)
    await write(engine, _LATER, id=stolen.account_id)
    await refresh(client, stolen.refresh_token)
    await refreshed(client, other_phone.refresh_token)


async def test_a_lost_reply_may_be_asked_for_again_and_both_answers_go_on(client: httpx2.AsyncClient) -> None:
    parent = await sign_in(client)
    lost = await refreshed(client, parent.refresh_token)
    found = await refreshed(client, parent.refresh_token)
    assert lost["refresh_token"] != found["refresh_token"]
    await refreshed(client, found["refresh_token"])
    await refreshed(client, lost["refresh_token"])


async def test_the_grace_does_not_renew_itself(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    parent = await sign_in(client)
    await refreshed(client, parent.refresh_token)
    used_at = "SELECT used_at FROM refresh_token WHERE account_id = :id AND used_at IS NOT NULL"
    first = await one(engine, used_at, id=parent.account_id)
    await refreshed(client, parent.refresh_token)
    assert await one(engine, used_at, id=parent.account_id) == first


async def test_one_token_sent_many_times_at_once_stays_one_family_and_gives_a_bounded_number(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    parent = await sign_in(client)
    answers = await asyncio.gather(*(refresh(client, parent.refresh_token) for _ in range(3 * REFRESH_SIBLINGS_MAX)))
    assert sum(answer.status_code == 200 for answer in answers) == REFRESH_SIBLINGS_MAX
    families = "SELECT count(DISTINCT family_id) FROM refresh_token WHERE account_id = :id"
    assert await one(engine, families, id=parent.account_id) == 1
    # So many are no lost reply: the sign-in has ended, and none of the tokens that were given out escaped.
    assert await one(engine, _LIVE, id=parent.account_id) == 0


async def test_a_thief_and_the_owner_racing_leave_no_token_alive(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    for _ in range(15):
        parent = await sign_in(client)
        newest = (await refreshed(client, parent.refresh_token))["refresh_token"]
        await write(engine, _LATER, id=parent.account_id)
        stolen, own = await asyncio.gather(refresh(client, parent.refresh_token), refresh(client, newest))
        assert refusal(stolen) == (401, "refresh_token_reused")
        assert own.status_code in {200, 401}
        assert await one(engine, _LIVE, id=parent.account_id) == 0


async def test_signing_out_while_refreshing_leaves_no_token_alive(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    for _ in range(15):
        parent = await sign_in(client)
        body = {"refresh_token": parent.refresh_token}
        await asyncio.gather(client.post("/v1/auth/refresh", json=body), client.post("/v1/auth/logout", json=body))
        assert await one(engine, _LIVE, id=parent.account_id) == 0


async def test_signing_out_ends_the_sign_in_and_may_be_sent_again(client: httpx2.AsyncClient) -> None:
    parent = await sign_in(client)
    newest = (await refreshed(client, parent.refresh_token))["refresh_token"]
    for _ in range(2):
        response = await client.post("/v1/auth/logout", json={"refresh_token": parent.refresh_token})
        assert (response.status_code, response.content) == (204, b"")
    assert refusal(await refresh(client, newest)) == (401, "refresh_token_invalid")
    unknown = await client.post("/v1/auth/logout", json={"refresh_token": "never-given-out"})
    assert unknown.status_code == 204


async def test_an_unknown_and_an_expired_token_are_refused(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    assert refusal(await refresh(client, "never-given-out")) == (401, "refresh_token_invalid")
    parent = await sign_in(client)
    expire = "UPDATE refresh_token SET expires_at = now() - interval '1 second' WHERE account_id = :id"
    await write(engine, expire, id=parent.account_id)
    assert refusal(await refresh(client, parent.refresh_token)) == (401, "refresh_token_invalid")


async def test_an_access_token_is_no_refresh_token_and_the_other_way_round(client: httpx2.AsyncClient) -> None:
    parent = await sign_in(client)
    assert (await refresh(client, parent.access_token)).status_code in {401, 422}
    response = await client.get("/v1/me", headers={"Authorization": f"Bearer {parent.refresh_token}"})
    assert refusal(response) == (401, "not_authenticated")


async def test_the_worker_forgets_what_has_expired_and_nothing_else(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    gone, kept = await sign_in(client), await sign_in(client)
    expire = "UPDATE refresh_token SET expires_at = now() - interval '1 second' WHERE account_id = :id"
    await write(engine, expire, id=gone.account_id)
    now = await one(engine, "SELECT now()")
    async with transaction(engine) as db:
        assert await jobs.forget_expired_tokens(db, now) >= 1
    count = "SELECT count(*) FROM refresh_token WHERE account_id = :id"
    assert await one(engine, count, id=gone.account_id) == 0
    assert await one(engine, count, id=kept.account_id) == 1
    await refreshed(client, kept.refresh_token)
