"""What may not leak: a nickname into the database's files, a token or a nickname into a log."""

import logging

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.logs import configure_logs
from app.core.settings import Settings
from tests.accounts.parents import CHILD, sign_in

pytestmark = pytest.mark.anyio

_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"


async def everything_stored(engine: AsyncEngine) -> str:
    """Return every row of every table as text, binary columns in hexadecimal."""
    rows: list[str] = []
    async with engine.connect() as connection:
        for table in (await connection.execute(text(_TABLES))).scalars().all():
            found = await connection.execute(text(f'SELECT row_to_json(t)::text FROM "{table}" t'))  # noqa: S608 - names of our own tables
            rows += found.scalars().all()
    return "\n".join(rows)


async def test_no_nickname_and_no_token_can_be_read_in_the_database(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    parent = await sign_in(client)
    headers = {**parent.headers, "Idempotency-Key": "privacy-1"}
    nickname = "绝密小满甲"
    response = await client.post("/v1/me/people", headers=headers, json={**CHILD, "nickname": nickname})
    assert response.status_code == 201
    invitation = await parent.invite(response.json()["id"])
    stored = await everything_stored(engine)
    assert response.json()["id"] in stored
    for secret in (nickname, invitation, parent.refresh_token, parent.access_token):
        assert secret not in stored
        assert secret.encode().hex() not in stored
        assert secret.encode("unicode_escape").decode() not in stored


async def test_no_nickname_open_id_token_or_month_of_birth_is_logged(
    client: httpx2.AsyncClient, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logs(settings.model_copy(update={"log_level": "debug"}))
    try:
        parent = await sign_in(client)
        other = await sign_in(client)
        person = await parent.register(nickname="绝密小满乙", birth_month="2013-07")
        token = await parent.invite(person["id"])
        await other.accept(token)
        await other.accept("绝密小满乙")
        await parent.post("/v1/me/people", {**CHILD, "nickname": "绝密小满乙", "birth_month": "2013-77"})
        await parent.put(f"/v1/me/people/{person['id']}", {**CHILD, "nickname": "绝密小满乙", "relation": "self"})
        again = await parent.post("/v1/me/people", {**CHILD, "nickname": "绝密小满乙", "relation": "self"})
        assert again.status_code == 409
        await client.post("/v1/auth/refresh", json={"refresh_token": parent.refresh_token})
        await client.get("/v1/me", headers={"Authorization": f"Bearer {parent.access_token}x"})
        await parent.delete(f"/v1/me/people/{person['id']}")
    finally:
        root.handlers, root.level = handlers, level
    logged = "".join(capfd.readouterr())
    assert "guardian_left" in logged
    for secret in (
        "绝密小满乙",
        "绝密小满乙".encode("unicode_escape").decode(),
        "2013-07",
        parent.openid,
        parent.refresh_token,
        parent.access_token,
        token,
        settings.token_key.get_secret_value(),
    ):
        assert secret not in logged
