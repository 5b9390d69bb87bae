import asyncio
from datetime import timedelta

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core import idempotency
from app.core.clock import Clock
from app.core.db import transaction
from app.core.settings import Settings
from tests.conftest import SignIn
from tests.core.test_web_bodies import problem_of

pytestmark = pytest.mark.anyio


async def units_named(engine: AsyncEngine, name: str) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(text("SELECT count(*) FROM unit WHERE name = :name"), {"name": name}) or 0)


async def test_the_same_key_and_body_get_the_same_answer(probed: httpx2.AsyncClient, sign_in: SignIn) -> None:
    headers = await sign_in("a") | {"Idempotency-Key": "key-1"}
    first = await probed.post("/probe/units", json={"name": "一村"}, headers=headers)
    again = await probed.post("/probe/units", json={"name": "一村"}, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Content-Type"] == "application/json"


async def test_an_empty_answer_is_given_again(probed: httpx2.AsyncClient, sign_in: SignIn) -> None:
    headers = await sign_in("a") | {"Idempotency-Key": "key-empty"}
    first = await probed.delete("/probe/units/nothing", headers=headers)
    again = await probed.delete("/probe/units/nothing", headers=headers)
    assert (first.status_code, again.status_code) == (204, 204)
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_the_same_key_with_another_request_is_refused(
    probed: httpx2.AsyncClient, sign_in: SignIn, engine: AsyncEngine
) -> None:
    headers = await sign_in("a") | {"Idempotency-Key": "key-2"}
    await probed.post("/probe/units", json={"name": "二村"}, headers=headers)
    other_body = await probed.post("/probe/units", json={"name": "三村"}, headers=headers)
    other_path = await probed.delete("/probe/units/二村", headers=headers)
    problem_of(other_body, 422, "idempotency_mismatch")
    problem_of(other_path, 422, "idempotency_mismatch")
    assert await units_named(engine, "二村") == 1
    assert await units_named(engine, "三村") == 0


async def test_a_key_belongs_to_its_account(probed: httpx2.AsyncClient, sign_in: SignIn) -> None:
    key = {"Idempotency-Key": "key-3"}
    first = await probed.post("/probe/units", json={"name": "四村"}, headers=await sign_in("a") | key)
    other = await probed.post("/probe/units", json={"name": "五村"}, headers=await sign_in("b") | key)
    assert (first.status_code, other.status_code) == (201, 201)


async def test_twenty_at_once_with_one_key_write_once(
    probed: httpx2.AsyncClient, sign_in: SignIn, engine: AsyncEngine
) -> None:
    headers = await sign_in("a") | {"Idempotency-Key": "key-4"}
    answers = await asyncio.gather(
        *(probed.post("/probe/units", json={"name": "六村"}, headers=headers) for _ in range(20))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 19
    assert await units_named(engine, "六村") == 1


async def test_a_refusal_spends_no_key_and_writes_nothing(
    probed: httpx2.AsyncClient, sign_in: SignIn, engine: AsyncEngine
) -> None:
    headers = await sign_in("a") | {"Idempotency-Key": "key-5"}
    problem_of(await probed.post("/probe/refused-units", json={"name": "七村"}, headers=headers), 409, "conflict")
    assert await units_named(engine, "七村") == 0
    assert (await probed.post("/probe/units", json={"name": "七村"}, headers=headers)).status_code == 201


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"a b", b"\xe9\x94\xae"])
async def test_a_key_that_is_none_is_refused(probed: httpx2.AsyncClient, sign_in: SignIn, key: bytes) -> None:
    token = (await sign_in("a"))["Authorization"]
    headers = [(b"Authorization", token.encode()), (b"Idempotency-Key", key)]
    document = problem_of(
        await probed.post("/probe/units", json={"name": "八村"}, headers=headers), 422, "validation_failed"
    )
    assert document["errors"][0]["field"] == "Idempotency-Key"


async def test_a_key_without_sign_in_is_nobodys(probed: httpx2.AsyncClient) -> None:
    answer = await probed.post("/probe/units", json={"name": "九村"}, headers={"Idempotency-Key": "key-6"})
    problem_of(answer, 401, "not_authenticated")


async def test_what_is_kept_can_be_read_by_nobody_else(
    probed: httpx2.AsyncClient, sign_in: SignIn, engine: AsyncEngine
) -> None:
    headers = await sign_in("a") | {"Idempotency-Key": "key-7"}
    await probed.post("/probe/units", json={"name": "十村"}, headers=headers)
    async with engine.connect() as connection:
        body = await connection.scalar(text("SELECT body FROM idempotency_record WHERE key = 'key-7'"))
    assert isinstance(body, bytes)
    assert "十村".encode() not in body


async def test_a_key_is_free_again_after_its_hours(
    probed: httpx2.AsyncClient, sign_in: SignIn, engine: AsyncEngine, settings: Settings
) -> None:
    headers = await sign_in("a") | {"Idempotency-Key": "key-8"}
    await probed.post("/probe/units", json={"name": "东村"}, headers=headers)
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE idempotency_record SET created_at = created_at - make_interval(hours => :hours)"),
            {"hours": settings.idempotency_hours},
        )
    other = await probed.post("/probe/units", json={"name": "西村"}, headers=headers)
    assert other.status_code == 201
    assert "Idempotency-Replayed" not in other.headers


async def test_expired_records_are_forgotten(probed: httpx2.AsyncClient, sign_in: SignIn, engine: AsyncEngine) -> None:
    headers = await sign_in("a") | {"Idempotency-Key": "key-9"}
    await probed.post("/probe/units", json={"name": "南村"}, headers=headers)
    now = Clock().now()
    async with transaction(engine) as db:
        forgotten = await idempotency.forget_expired(db, now=now + timedelta(hours=25), hours=24)
    assert forgotten >= 1
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM idempotency_record")) == 0
