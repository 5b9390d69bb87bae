"""Signing in with WeChat: who comes in, with what, and at which cost."""

import asyncio
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts.policy import Role
from app.core.auth import sign_access_token, verify_access_token
from app.core.settings import Settings
from tests.accounts.parents import CHILD, code_of, fresh_name, one, sign_in, sign_in_as, write

pytestmark = pytest.mark.anyio


async def test_a_parent_signs_in_and_the_answer_has_the_fixed_shape(
    client: httpx2.AsyncClient, settings: Settings, api: FastAPI
) -> None:
    response = await client.post("/v1/auth/wechat", json={"code": fresh_name()})
    assert response.status_code == 200
    told = response.json()
    assert set(told) == {"access_token", "token_type", "expires_in", "refresh_token", "account"}
    assert told["token_type"] == "Bearer"
    assert told["expires_in"] == settings.access_token_seconds
    assert told["account"]["roles"] == ["resident"]
    assert set(told["account"]) == {"id", "roles"}
    key = settings.token_key.get_secret_value().encode()
    signed_for = verify_access_token(told["access_token"], key=key, now_ms=api.state.clock.now_ms())
    assert signed_for == UUID(told["account"]["id"])


async def test_the_same_wechat_user_is_the_same_account_even_when_two_phones_sign_in_at_once(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    name = fresh_name()
    parents = await asyncio.gather(*(sign_in(client, name) for _ in range(20)))
    assert len({parent.account_id for parent in parents}) == 1
    assert len({parent.refresh_token for parent in parents}) == 20
    assert await one(engine, "SELECT count(*) FROM account WHERE openid = :openid", openid=name) == 1


async def test_the_answer_names_each_granted_role_once(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    operator = await sign_in_as(client, engine, Role.OPERATOR)
    told = (await client.post("/v1/auth/wechat", json={"code": operator.openid})).json()
    assert told["account"]["roles"] == ["resident", "operator"]


@pytest.mark.parametrize(
    ("code", "status", "problem"),
    [
        ("not-a-demo-code", 401, "wechat_code_invalid"),
        ("fail-40226", 403, "wechat_account_blocked"),
        ("fail-45011", 429, "rate_limited"),
        ("fail--1", 503, "wechat_busy"),
    ],
)
async def test_what_wechat_refuses_is_told_by_its_own_code_and_leaves_no_account(
    client: httpx2.AsyncClient, engine: AsyncEngine, code: str, status: int, problem: str
) -> None:
    response = await client.post("/v1/auth/wechat", json={"code": code})
    assert (response.status_code, code_of(response)) == (status, problem)
    assert await one(engine, "SELECT count(*) FROM account WHERE openid = :openid", openid=code) == 0


async def test_a_blocked_account_gets_no_token_and_none_is_stored(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    parent = await sign_in(client)
    await write(engine, "UPDATE account SET blocked_at = now() WHERE id = :id", id=parent.account_id)
    count = "SELECT count(*) FROM refresh_token WHERE account_id = :id"
    before = await one(engine, count, id=parent.account_id)
    response = await client.post("/v1/auth/wechat", json={"code": parent.openid})
    assert (response.status_code, code_of(response)) == (403, "account_blocked")
    response = await client.post("/v1/auth/refresh", json={"refresh_token": parent.refresh_token})
    assert (response.status_code, code_of(response)) == (403, "account_blocked")
    response = await parent.post("/v1/me/people", CHILD)
    assert (response.status_code, code_of(response)) == (403, "account_blocked")
    assert await one(engine, count, id=parent.account_id) == before


async def test_only_the_hash_of_a_refresh_token_is_stored(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    parent = await sign_in(client)
    row = await one(
        engine, "SELECT row_to_json(t)::text FROM refresh_token t WHERE account_id = :id", id=parent.account_id
    )
    assert parent.refresh_token not in row
    assert parent.refresh_token.encode().hex() not in row


async def test_no_database_connection_waits_for_wechat(client: httpx2.AsyncClient, api: FastAPI) -> None:
    pool = api.state.engine.pool
    asked, answer = asyncio.Event(), asyncio.Event()
    identify = api.state.wechat.identify

    async def identify_when_told(code: str) -> object:
        asked.set()
        await answer.wait()
        return await identify(code)

    api.state.wechat.identify = identify_when_told
    signing_in = asyncio.create_task(sign_in(client))
    await asked.wait()
    assert pool.checkedout() == 0
    answer.set()
    await signing_in


async def test_a_sign_in_is_one_statement_in_one_transaction(client: httpx2.AsyncClient, api: FastAPI) -> None:
    trips = RoundTrips(api.state.engine)
    with trips:
        await sign_in(client)
    assert trips.seen == ["begin", "statement", "commit"]


async def test_registering_a_person_takes_four_round_trips(client: httpx2.AsyncClient, api: FastAPI) -> None:
    parent = await sign_in(client)
    trips = RoundTrips(api.state.engine)
    with trips:
        await parent.register()
    assert trips.seen == ["begin", "statement", "statement", "commit"]


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic cm9vdDpyb290", "Pass abc", "Bearer a.b.c", "bearer\tx"]
)
async def test_without_a_good_token_every_path_of_the_account_says_sign_in_first(
    client: httpx2.AsyncClient, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/me", "/v1/me/people", f"/v1/accounts/{UUID(int=0)}/roles"):
        response = await client.get(path, headers=headers)
        assert (response.status_code, code_of(response)) == (401, "not_authenticated")


async def test_an_expired_token_is_told_apart_so_that_the_phone_refreshes(
    client: httpx2.AsyncClient, settings: Settings, api: FastAPI
) -> None:
    parent = await sign_in(client)
    key = settings.token_key.get_secret_value().encode()
    two_hours_ago_ms = api.state.clock.now_ms() - 7_200_000
    stale = sign_access_token(parent.account_id, key=key, now_ms=two_hours_ago_ms, lifetime_seconds=7_200)
    response = await client.get("/v1/me", headers={"Authorization": f"Bearer {stale}"})
    assert (response.status_code, code_of(response)) == (401, "token_expired")


async def test_a_token_of_an_account_that_is_not_here_registers_nobody(
    client: httpx2.AsyncClient, settings: Settings, api: FastAPI
) -> None:
    key = settings.token_key.get_secret_value().encode()
    stray = sign_access_token(UUID(int=7), key=key, now_ms=api.state.clock.now_ms(), lifetime_seconds=60)
    response = await client.post("/v1/me/people", headers={"Authorization": f"Bearer {stray}"}, json=CHILD)
    assert (response.status_code, code_of(response)) == (401, "not_authenticated")


class RoundTrips:
    """What an engine sends to PostgreSQL while it is watched, one entry a round trip; the pool's own ping left out."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine.sync_engine
        self.seen: list[str] = []

    def _begin(self, *_: object) -> None:
        self.seen.append("begin")

    def _statement(self, *_: object) -> None:
        self.seen.append("statement")

    def _commit(self, *_: object) -> None:
        self.seen.append("commit")

    def __enter__(self) -> None:
        event.listen(self._engine, "begin", self._begin)
        event.listen(self._engine, "before_cursor_execute", self._statement)
        event.listen(self._engine, "commit", self._commit)

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "begin", self._begin)
        event.remove(self._engine, "before_cursor_execute", self._statement)
        event.remove(self._engine, "commit", self._commit)
