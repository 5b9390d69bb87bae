"""The catalogue: everybody reads what is published, cheaply, and nobody else's drafts."""

import asyncio

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.booking.releases.catalogue import Catalogue
from app.core.ids import new_id
from tests.booking.releases.town import OTHER_STATION, STATION, Headers, created, published, release_body, session_body

pytestmark = pytest.mark.anyio


async def ids_of(client: httpx2.AsyncClient, query: str) -> list[str]:
    response = await client.get(f"/v1/releases?{query}")
    assert response.status_code == 200, response.text
    return [item["id"] for item in response.json()["items"]]


async def test_a_published_release_is_shown_in_the_fixed_shape(client: httpx2.AsyncClient, staff: Headers) -> None:
    release = await published(client, staff, release_body(session_body(0, room="201", summary="毛笔")))
    shown = (await client.get(f"/v1/releases/{release['id']}")).json()
    assert shown == release
    assert shown.keys() >= {
        *("id", "title", "mode", "opens_at", "closes_at", "person_limit", "account_limit", "rules", "rules_version"),
        *("pools", "state"),
    }
    (pool,) = shown["pools"]
    assert pool["station"].keys() == {"id", "name", "kind", "address"}
    assert (pool["station"]["id"], pool["kind"], pool["capacity"], pool["state"]) == (STATION, "session", 3, "open")
    assert (pool["room"], pool["summary"], pool["age_min"], pool["age_max"]) == ("201", "毛笔", 6, 12)
    assert pool["starts_at"].endswith("+08:00")


async def test_a_draft_is_there_only_for_its_staff_and_operators(
    client: httpx2.AsyncClient, staff: Headers, foreign_staff: Headers, operator: Headers, resident: Headers
) -> None:
    draft = await created(client, staff, release_body())
    path = f"/v1/releases/{draft['id']}"
    statuses = [
        (await client.get(path, headers=headers)).status_code
        for headers in ({}, resident, foreign_staff, staff, operator)
    ]
    assert statuses == [404, 404, 404, 200, 200]
    assert draft["id"] not in await ids_of(client, "limit=100")
    seen = await client.get(path, headers=staff)
    assert seen.json()["state"] == "draft"
    assert "private" in seen.headers["cache-control"]


async def test_staff_of_one_of_its_stations_see_a_shared_draft_and_cannot_publish_it(
    client: httpx2.AsyncClient, staff: Headers, operator: Headers
) -> None:
    draft = await created(client, operator, release_body(session_body(0), session_body(1, station_id=OTHER_STATION)))
    assert (await client.get(f"/v1/releases/{draft['id']}", headers=staff)).status_code == 200
    assert (await client.post(f"/v1/releases/{draft['id']}/publish", headers=staff)).status_code == 404
    assert (await client.post(f"/v1/releases/{draft['id']}/publish", headers=operator)).status_code == 200


async def test_a_release_that_does_not_exist_is_not_found(client: httpx2.AsyncClient) -> None:
    response = await client.get(f"/v1/releases/{new_id()}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_who_has_the_newest_answer_gets_304_until_it_changes(client: httpx2.AsyncClient, staff: Headers) -> None:
    release = await published(client, staff, release_body())
    for path in (f"/v1/releases/{release['id']}", "/v1/releases?state=upcoming&limit=100"):
        first = await client.get(path)
        tag = first.headers["etag"]
        again = await client.get(path, headers={"If-None-Match": f'"other", {tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        pool = release["pools"][0]["id"]
        capacity = 7 if "?" in path else 5
        changed = await client.put(
            f"/v1/pools/{pool}/capacity", json={"capacity": capacity, "reason": "换大教室"}, headers=staff
        )
        assert changed.status_code == 200, changed.text
        # This worker shows its own change at once; no waiting for the answer to age.
        fresh = await client.get(path, headers={"If-None-Match": tag})
        assert fresh.status_code == 200
        assert fresh.headers["etag"] != tag


async def test_states_follow_from_the_times_and_the_clock(client: httpx2.AsyncClient, staff: Headers) -> None:
    upcoming = await published(client, staff, release_body(opens_in_hours=2))
    sooner = await published(client, staff, release_body(opens_in_hours=1.5))
    running = await published(client, staff, release_body(opens_in_hours=-1))
    listed = await ids_of(client, "state=upcoming&limit=100")
    assert listed.index(sooner["id"]) < listed.index(upcoming["id"]), "the next opening comes first"
    assert running["id"] not in listed
    assert running["id"] in await ids_of(client, "state=open&limit=100")
    closed = await ids_of(client, "state=closed&limit=100")
    assert not {upcoming["id"], sooner["id"], running["id"]} & set(closed)


async def test_a_release_is_listed_as_closed_once_it_has_closed(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    release = await published(client, staff, release_body(opens_in_hours=-1))
    async with AsyncSession(engine) as db, db.begin():
        connection = await db.connection()
        await connection.exec_driver_sql(
            "UPDATE release SET closes_at = now() - interval '1 minute' WHERE id = $1", (release["id"],)
        )
    assert release["id"] in await ids_of(client, "state=closed&limit=99")
    assert release["id"] not in await ids_of(client, "state=open&limit=99")


@pytest.mark.parametrize("state", ["upcoming", ""])
async def test_pages_show_every_release_once(client: httpx2.AsyncClient, staff: Headers, state: str) -> None:
    made = {(await published(client, staff, release_body(session_body(), opens_in_hours=3)))["id"] for _ in range(5)}
    query = f"state={state}&" if state else ""
    seen: list[str] = []
    cursor = ""
    for _ in range(50):
        page = (await client.get(f"/v1/releases?{query}limit=2{cursor}")).json()
        seen += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert len(seen) == len(set(seen))
    assert made <= set(seen)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=draft", "state"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=ten", "limit"),
        ("cursor=nonsense", "cursor"),
        ("cursor=WyJhIiwgImIiXQ", "cursor"),
        ("cursor=WyI5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTkiLCAieCJd", "cursor"),
    ],
)
async def test_a_wrong_query_is_refused_by_name(client: httpx2.AsyncClient, query: str, field: str) -> None:
    response = await client.get(f"/v1/releases?{query}")
    assert response.status_code == 422, response.text
    assert [error["field"] for error in response.json()["errors"]] == [field]


async def test_a_thousand_readers_at_once_cost_one_rendering(engine: AsyncEngine) -> None:
    catalogue = Catalogue(engine, age_ms=5_000, answers_limit=10)
    rendered = 0
    go_on = asyncio.Event()

    async def render(_db: AsyncSession) -> bytes:
        nonlocal rendered
        rendered += 1
        await go_on.wait()
        return b"{}"

    readers = [asyncio.create_task(catalogue.answer("one", render)) for _ in range(1_000)]
    readers[0].cancel()
    go_on.set()
    answers = await asyncio.gather(*readers, return_exceptions=True)
    assert rendered == 1
    assert {answer.body for answer in answers[1:] if not isinstance(answer, BaseException) and answer} == {b"{}"}
    catalogue.forget()
    await catalogue.answer("one", render)
    assert rendered == 2


async def test_a_failed_rendering_is_not_kept(engine: AsyncEngine) -> None:
    catalogue = Catalogue(engine, age_ms=5_000, answers_limit=10)

    async def fail(_db: AsyncSession) -> bytes:
        raise OSError

    async def succeed(_db: AsyncSession) -> bytes:
        return b"{}"

    with pytest.raises(OSError):  # noqa: PT011 - any of them: what is raised is passed on
        await catalogue.answer("one", fail)
    answer = await catalogue.answer("one", succeed)
    assert answer is not None
    assert answer.body == b"{}"


async def test_an_older_answer_than_the_setting_allows_is_rendered_anew(engine: AsyncEngine) -> None:
    catalogue = Catalogue(engine, age_ms=0, answers_limit=1)
    bodies = iter([b"1", b"2"])

    async def render(_db: AsyncSession) -> bytes:
        return next(bodies)

    answers = [await catalogue.answer("one", render) for _ in range(2)]
    assert [answer.body for answer in answers if answer] == [b"1", b"2"]
