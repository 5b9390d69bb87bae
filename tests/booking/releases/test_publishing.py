"""Publishing freezes the rules; what still changes afterwards changes with a reason and before the opening."""

import asyncio

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.gate import Gate
from app.core.ids import new_id
from app.core.settings import Settings
from tests.booking.releases.conftest import NewFamily
from tests.booking.releases.town import Headers, Json, created, in_hours, published, release_body, session_body

pytestmark = pytest.mark.anyio


def change_of(release: Json, **changes: object) -> Json:
    return {**{name: release[name] for name in ("title", "opens_at", "closes_at")}, **changes}


async def stored(engine: AsyncEngine, release_id: str) -> tuple[str, str | None, int]:
    async with engine.connect() as connection:
        row = await connection.execute(
            text("SELECT state, rules_version, epoch FROM release WHERE id = :id"), {"id": release_id}
        )
        state, version, epoch = row.one()
        return state, version, epoch


async def test_publishing_again_answers_the_same(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    first = await published(client, staff, release_body())
    epoch = (await stored(engine, first["id"]))[2]
    again = await client.post(f"/v1/releases/{first['id']}/publish", headers=staff)
    assert (again.status_code, again.json()) == (200, first)
    assert (await stored(engine, first["id"]))[2] == epoch, "publishing again builds nothing again"
    assert first["state"] == "published"
    assert first["rules_version"].startswith("r-")


async def test_twenty_at_once_publish_it_once(client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine) -> None:
    draft = await created(client, staff, release_body())
    path = f"/v1/releases/{draft['id']}/publish"
    answers = await asyncio.gather(*(client.post(path, headers=staff) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert (await stored(engine, draft["id"]))[2] == 1


async def test_a_published_release_can_be_claimed_at_its_opening(
    client: httpx2.AsyncClient, staff: Headers, new_family: NewFamily
) -> None:
    release = await published(client, staff, release_body(opens_in_hours=-1))
    family = await new_family(release["id"])
    answer = await family.grab(client, release["pools"][0]["id"])
    assert answer.status_code == 201, answer.text


async def test_only_staff_of_every_station_and_operators_publish(
    client: httpx2.AsyncClient, staff: Headers, foreign_staff: Headers, operator: Headers, resident: Headers
) -> None:
    draft = await created(client, staff, release_body())
    path = f"/v1/releases/{draft['id']}/publish"
    statuses = [
        (await client.post(path, headers=headers)).status_code for headers in ({}, resident, foreign_staff, operator)
    ]
    assert statuses == [401, 404, 404, 200]
    # Once it is public there is nothing to hide.
    assert (await client.post(path, headers=resident)).json()["code"] == "forbidden"
    assert (await client.post(path, headers=foreign_staff)).json()["code"] == "forbidden"
    assert (await client.post(f"/v1/releases/{new_id()}/publish", headers=operator)).status_code == 404


async def test_the_same_rules_have_the_same_version_and_times_do_not_count(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    release = await published(client, staff, release_body())
    moved = await client.put(
        f"/v1/releases/{release['id']}",
        json=change_of(release, opens_at=in_hours(2), title="暑期课程（改期）", reason="台风"),
        headers=staff,
    )
    assert moved.status_code == 200, moved.text
    assert moved.json()["rules_version"] == release["rules_version"]
    assert moved.json()["opens_at"] != release["opens_at"]
    other = await published(client, staff, release_body(rules="每人一门"))
    assert other["rules_version"] != release["rules_version"]
    assert (await stored(engine, release["id"]))[2] > 1, "the gate is built anew for the new opening"


async def test_a_moved_opening_holds_at_the_gate(
    client: httpx2.AsyncClient, staff: Headers, new_family: NewFamily
) -> None:
    release = await published(client, staff, release_body(opens_in_hours=1))
    family = await new_family(release["id"])
    early = await family.grab(client, release["pools"][0]["id"])
    assert (early.status_code, early.json()["opens_at"]) == (425, release["opens_at"])
    moved = await client.put(
        f"/v1/releases/{release['id']}", json=change_of(release, opens_at=in_hours(3), reason="顺延"), headers=staff
    )
    later = await family.grab(client, release["pools"][0]["id"])
    assert (later.status_code, later.json()["opens_at"]) == (425, moved.json()["opens_at"])


@pytest.mark.parametrize("change", [{"rules": "每人一门"}, {"person_limit": 1}, {"account_limit": 1}])
async def test_rules_and_limits_are_frozen_by_publishing(
    client: httpx2.AsyncClient, staff: Headers, change: Json
) -> None:
    release = await published(client, staff, release_body())
    path = f"/v1/releases/{release['id']}"
    answer = await client.put(path, json=change_of(release, reason="更正", **change), headers=staff)
    assert (answer.status_code, answer.json()["code"]) == (409, "release_frozen")
    same = {name: release[name] for name in ("rules", "person_limit", "account_limit")}
    assert (await client.put(path, json=change_of(release, reason="更正", **same), headers=staff)).status_code == 200
    assert (await client.get(path)).json() == release


async def test_nothing_moves_once_it_has_opened(client: httpx2.AsyncClient, staff: Headers) -> None:
    release = await published(client, staff, release_body(opens_in_hours=-1))
    answer = await client.put(
        f"/v1/releases/{release['id']}", json=change_of(release, title="另一个", reason="更正"), headers=staff
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "release_frozen")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"opens_at": in_hours(2)}, "reason"),
        ({"opens_at": in_hours(-1), "reason": "x"}, "opens_at"),
        ({"opens_at": in_hours(23.9), "closes_at": in_hours(2), "reason": "x"}, "closes_at"),
        ({"opens_at": in_hours(49), "closes_at": in_hours(49.5), "reason": "x"}, "opens_at"),
        ({"closes_at": in_hours(60), "reason": "x"}, "closes_at"),
        ({"opens_at": "2099-01-01T00:00:00", "reason": "x"}, "opens_at"),
        ({"title": "", "reason": "x"}, "title"),
        ({"sessions": [], "reason": "x"}, "sessions"),
    ],
)
async def test_a_wrong_change_is_refused_by_name(
    client: httpx2.AsyncClient, staff: Headers, change: Json, field: str
) -> None:
    release = await published(client, staff, release_body())
    answer = await client.put(f"/v1/releases/{release['id']}", json=change_of(release, **change), headers=staff)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert (await client.get(f"/v1/releases/{release['id']}")).json() == release


async def test_a_draft_changes_freely(client: httpx2.AsyncClient, staff: Headers, resident: Headers) -> None:
    draft = await created(client, staff, release_body())
    path = f"/v1/releases/{draft['id']}"
    body = change_of(draft, title="改名", rules="每人一门", person_limit=1, opens_at=in_hours(5))
    assert (await client.put(path, json=body, headers=resident)).status_code == 404
    changed = (await client.put(path, json=body, headers=staff)).json()
    assert (changed["title"], changed["rules"], changed["person_limit"]) == ("改名", "每人一门", 1)
    assert (changed["account_limit"], changed["rules_version"]) == (draft["account_limit"], None)


async def test_what_has_closed_cannot_be_published(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    draft = await created(client, staff, release_body(opens_in_hours=-2))
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE release SET closes_at = now() - interval '1 hour' WHERE id = :id"), {"id": draft["id"]}
        )
    answer = await client.post(f"/v1/releases/{draft['id']}/publish", headers=staff)
    assert (answer.status_code, answer.json()["code"]) == (409, "release_not_publishable")


async def test_a_gate_that_cannot_be_built_does_not_undo_the_publishing(
    client: httpx2.AsyncClient, api: FastAPI, settings: Settings, staff: Headers, new_family: NewFamily
) -> None:
    draft = await created(client, staff, release_body(session_body(), opens_in_hours=-1))
    working: Gate = api.state.gate
    nowhere = SecretStr("unix:///nonexistent/valkey.sock")
    broken = await Gate.open(settings.model_copy(update={"redis_url": nowhere}), working.clock)
    api.state.gate = broken
    try:
        answer = await client.post(f"/v1/releases/{draft['id']}/publish", headers=staff)
    finally:
        api.state.gate = working
        await broken.close()
    assert (answer.status_code, answer.json()["state"]) == (200, "published")
    # The gate builds itself at the first claim.
    family = await new_family(draft["id"])
    assert (await family.grab(client, draft["pools"][0]["id"])).status_code == 201
