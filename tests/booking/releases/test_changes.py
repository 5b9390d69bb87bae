"""What staff change, and why, can be read afterwards."""

import logging

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.ids import new_id
from tests.booking.releases.town import (
    OTHER_STATION,
    Headers,
    Json,
    created,
    in_hours,
    published,
    release_body,
    session_body,
)

pytestmark = pytest.mark.anyio


async def changes_of(client: httpx2.AsyncClient, headers: Headers, release_id: str, query: str = "") -> Json:
    answer = await client.get(f"/v1/releases/{release_id}/changes{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def set_capacity(client: httpx2.AsyncClient, staff: Headers, pool: str, capacity: int, reason: str) -> int:
    body = {"capacity": capacity, "reason": reason}
    return (await client.put(f"/v1/pools/{pool}/capacity", json=body, headers=staff)).status_code


async def test_a_capacity_and_an_opening_that_moved_tell_who_moved_them_and_why(
    client: httpx2.AsyncClient, staff: Headers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    release = await published(client, staff, release_body(session_body(capacity=3)))
    pool = release["pools"][0]["id"]
    assert await set_capacity(client, staff, pool, 5, "换到大教室") == 200
    moved = {**{name: release[name] for name in ("title", "opens_at", "closes_at")}, "closes_at": in_hours(30)}
    answer = await client.put(f"/v1/releases/{release['id']}", json={**moved, "reason": "台风"}, headers=staff)
    assert answer.status_code == 200, answer.text
    me = (await client.get("/v1/me", headers=staff)).json()["id"]

    newest, oldest = (await changes_of(client, staff, release["id"]))["items"]

    assert (newest["reason"], newest["pool"], newest["changed_by"]) == ("台风", None, me)
    assert newest["changes"] == {"closes_at": [release["closes_at"], answer.json()["closes_at"]]}
    assert (oldest["reason"], oldest["pool"], oldest["changed_by"]) == ("换到大教室", pool, me)
    assert oldest["changes"] == {"capacity": [3, 5]}
    # A reason may name somebody, so it is kept and not logged.
    assert "capacity_changed" in caplog.text
    assert "release_changed" in caplog.text
    assert "换到大教室" not in caplog.text
    assert "台风" not in caplog.text


async def test_what_changed_nothing_or_was_refused_leaves_no_trace(client: httpx2.AsyncClient, staff: Headers) -> None:
    release = await published(client, staff, release_body(session_body(capacity=3)))
    assert await set_capacity(client, staff, release["pools"][0]["id"], 3, "一样") == 200
    same = {**{name: release[name] for name in ("title", "opens_at", "closes_at")}, "reason": "一样"}
    assert (await client.put(f"/v1/releases/{release['id']}", json=same, headers=staff)).status_code == 200
    frozen = {**same, "person_limit": release["person_limit"] + 1}
    assert (await client.put(f"/v1/releases/{release['id']}", json=frozen, headers=staff)).status_code == 409
    assert (await changes_of(client, staff, release["id"]))["items"] == []


async def test_changes_come_in_pages_newest_first(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    release = await published(client, staff, release_body(session_body(capacity=3)))
    for capacity in range(4, 9):
        assert await set_capacity(client, staff, release["pools"][0]["id"], capacity, f"第 {capacity} 个") == 200
    seen: list[int] = []
    query = "?limit=2"
    while True:
        page = await changes_of(client, staff, release["id"], query)
        seen += [item["changes"]["capacity"][1] for item in page["items"]]
        if page["next"] is None:
            break
        query = f"?limit=2&cursor={page['next']}"
    assert seen == [8, 7, 6, 5, 4]
    async with engine.connect() as connection:
        count = text("SELECT count(*) FROM release_change WHERE release_id = :id")
        assert await connection.scalar(count, {"id": release["id"]}) == len(seen)


async def test_staff_of_a_station_in_it_and_operators_read_changes(
    client: httpx2.AsyncClient, staff: Headers, foreign_staff: Headers, operator: Headers, resident: Headers
) -> None:
    own = await published(client, staff, release_body(session_body()))
    shared = await published(client, operator, release_body(session_body(0), session_body(1, station_id=OTHER_STATION)))
    hidden = await created(client, staff, release_body())
    everybody: tuple[Headers, ...] = ({}, resident, foreign_staff, staff, operator)

    async def statuses(release_id: object) -> list[int]:
        path = f"/v1/releases/{release_id}/changes"
        return [(await client.get(path, headers=headers)).status_code for headers in everybody]

    assert await statuses(own["id"]) == [401, 403, 403, 200, 200]
    assert await statuses(shared["id"]) == [401, 403, 200, 200, 200]
    assert await statuses(hidden["id"]) == [401, 404, 404, 200, 200]
    assert await statuses(new_id()) == [401, 404, 404, 404, 404]
