"""People of a family: registered, changed and removed by their guardians, and unknown to everybody else."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.clock import TOWN_ZONE
from app.core.ids import new_id
from app.core.settings import Settings
from tests.accounts.parents import CHILD, code_of, one, sign_in, write

pytestmark = pytest.mark.anyio


async def new_unit(engine: AsyncEngine) -> str:
    unit_id = new_id()
    insert = "INSERT INTO unit (id, kind, name) VALUES (:id, 'village', :name)"
    await write(engine, insert, id=unit_id, name=f"示范村{unit_id.hex}")
    return str(unit_id)


async def test_a_registered_person_has_the_fixed_shape_and_is_read_back_the_same(client: httpx2.AsyncClient) -> None:
    parent = await sign_in(client)
    person = await parent.register()
    assert set(person) == {
        "id",
        "nickname",
        "birth_month",
        "relation",
        "resident_unit_id",
        "consent",
        "guardians",
        "created_at",
    }
    assert person["nickname"] == "小满"
    assert person["birth_month"] == "2016-05"
    assert person["guardians"] == 1
    assert person["consent"] == {
        "version": "2026-09",
        "purposes": ["booking"],
        "given_at": person["consent"]["given_at"],
    }
    assert person["created_at"].endswith("+08:00")
    assert (await parent.get(f"/v1/me/people/{person['id']}")).json() == person
    assert (await parent.get("/v1/me/people")).json() == {"items": [person], "next": None}


async def test_a_resident_of_a_unit_names_one_that_exists(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    parent, unit_id = await sign_in(client), await new_unit(engine)
    assert (await parent.register(resident_unit_id=unit_id))["resident_unit_id"] == unit_id
    unknown = {**CHILD, "resident_unit_id": str(new_id())}
    person = await parent.register()
    for response in (
        await parent.post("/v1/me/people", unknown),
        await parent.put(f"/v1/me/people/{person['id']}", unknown),
    ):
        assert (response.status_code, code_of(response)) == (422, "unknown_unit")
        assert response.json()["errors"][0]["field"] == "resident_unit_id"
    assert (await parent.get(f"/v1/me/people/{person['id']}")).json() == person
    assert len((await parent.get("/v1/me/people")).json()["items"]) == 2


async def test_a_month_that_has_begun_in_the_town_may_be_a_birth_month_and_the_next_may_not(
    client: httpx2.AsyncClient, api: FastAPI
) -> None:
    parent = await sign_in(client)
    today = api.state.clock.now().astimezone(TOWN_ZONE)
    next_month = (today.replace(day=1) + timedelta(days=32)).strftime("%Y-%m")
    person = await parent.register(birth_month=today.strftime("%Y-%m"))
    born_later = {**CHILD, "birth_month": next_month}
    for response in (
        await parent.post("/v1/me/people", born_later),
        await parent.put(f"/v1/me/people/{person['id']}", born_later),
    ):
        assert (response.status_code, code_of(response)) == (422, "birth_month_in_future")


async def test_people_are_listed_in_pages_in_the_order_of_registration(client: httpx2.AsyncClient) -> None:
    parent = await sign_in(client)
    ids = [(await parent.register(nickname=f"孩{number}"))["id"] for number in range(5)]
    seen: list[str] = []
    pages = 0
    cursor: str | None = ""
    while cursor is not None:
        page = (await parent.get(f"/v1/me/people?limit=2{cursor and '&cursor='}{cursor}")).json()
        seen += [person["id"] for person in page["items"]]
        cursor = page["next"]
        pages += 1
    assert (seen, pages) == (ids, 3)


async def test_no_account_exceeds_its_limit_however_many_registrations_arrive_at_once(
    client: httpx2.AsyncClient, settings: Settings, engine: AsyncEngine
) -> None:
    parent = await sign_in(client)
    answers = await asyncio.gather(*(parent.post("/v1/me/people", CHILD) for _ in range(settings.people_limit * 3)))
    registered = [answer for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert len(registered) == settings.people_limit
    assert {(answer.status_code, code_of(answer)) for answer in refused} == {(409, "people_limit_reached")}
    assert {answer.json()["limit"] for answer in refused} == {settings.people_limit}
    count = "SELECT count(*) FROM guardianship WHERE account_id = :id"
    assert await one(engine, count, id=parent.account_id) == settings.people_limit


async def test_an_account_is_itself_once(client: httpx2.AsyncClient) -> None:
    parent = await sign_in(client)
    answers = await asyncio.gather(*(parent.post("/v1/me/people", {**CHILD, "relation": "self"}) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert {code_of(answer) for answer in answers if answer.status_code == 409} == {"self_registered"}
    child = await parent.register()
    response = await parent.put(f"/v1/me/people/{child['id']}", {**CHILD, "relation": "self"})
    assert (response.status_code, code_of(response)) == (409, "self_registered")
    assert (await parent.get(f"/v1/me/people/{child['id']}")).json() == child


async def test_a_change_replaces_everything_that_was_stated(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    parent, unit_id = await sign_in(client), await new_unit(engine)
    person = await parent.register()
    changed: dict[str, Any] = {
        "nickname": "大满",
        "birth_month": "2015-04",
        "relation": "other",
        "resident_unit_id": unit_id,
        "consent": {"version": "2026-10", "purposes": ["photo", "booking"]},
    }
    response = await parent.put(f"/v1/me/people/{person['id']}", changed)
    assert response.status_code == 200
    told = response.json()
    assert told["consent"].pop("given_at") > person["consent"]["given_at"]
    assert told == {
        **changed,
        "consent": {"version": "2026-10", "purposes": ["booking", "photo"]},
        "id": person["id"],
        "guardians": 1,
        "created_at": person["created_at"],
    }


async def test_the_same_change_sent_again_changes_nothing(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    parent = await sign_in(client)
    person = await parent.register()
    for _ in range(2):
        assert (await parent.put(f"/v1/me/people/{person['id']}", CHILD)).json() == person
    assert await one(engine, "SELECT count(*) FROM consent WHERE person_id = :id", id=person["id"]) == 1


async def test_a_consent_is_withdrawn_and_given_again_and_its_history_stays(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    parent = await sign_in(client)
    person = await parent.register()
    path = f"/v1/me/people/{person['id']}/consent"
    withdrawn = (await parent.put(path, {"version": "2026-09", "purposes": []})).json()
    assert withdrawn["consent"]["purposes"] == []
    again = (await parent.put(path, {"version": "2026-10", "purposes": ["statistics", "booking", "booking"]})).json()
    assert again["consent"]["purposes"] == ["booking", "statistics"]
    history = """SELECT array_agg(version || ':' || array_to_string(purposes, ',') ORDER BY id)
                 FROM consent WHERE person_id = :id"""
    assert await one(engine, history, id=person["id"]) == ["2026-09:booking", "2026-09:", "2026-10:booking,statistics"]


async def test_consents_changed_at_once_leave_one_standing(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    parent = await sign_in(client)
    person = await parent.register()
    answers = await asyncio.gather(
        *(
            parent.put(f"/v1/me/people/{person['id']}/consent", {"version": str(number), "purposes": ["booking"]})
            for number in range(10)
        )
    )
    assert {answer.status_code for answer in answers} == {200}
    standing = "SELECT count(*) FROM consent WHERE person_id = :id AND withdrawn_at IS NULL"
    assert await one(engine, standing, id=person["id"]) == 1
    assert await one(engine, "SELECT count(*) FROM consent WHERE person_id = :id", id=person["id"]) == 11


async def test_the_last_guardian_leaving_erases_the_person_and_keeps_the_anonymous_row(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    parent, unit_id = await sign_in(client), await new_unit(engine)
    person = await parent.register(resident_unit_id=unit_id)
    response = await parent.delete(f"/v1/me/people/{person['id']}")
    assert (response.status_code, response.content) == (204, b"")
    row = await one(engine, "SELECT row_to_json(p) FROM person p WHERE id = :id", id=person["id"])
    assert row["nickname_sealed"] == "\\x"
    assert row["birth_month"] == "2016-01"
    assert row["resident_unit_id"] is None
    assert row["removed_at"] is not None
    standing = "SELECT count(*) FROM consent WHERE person_id = :id AND withdrawn_at IS NULL"
    assert await one(engine, standing, id=person["id"]) == 0
    assert (await parent.get("/v1/me/people")).json()["items"] == []
    for response in (
        await parent.get(f"/v1/me/people/{person['id']}"),
        await parent.delete(f"/v1/me/people/{person['id']}"),
    ):
        assert (response.status_code, code_of(response)) == (404, "not_found")


async def test_guardians_who_leave_at_once_erase_the_person(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    for _ in range(10):
        mother, father = await sign_in(client), await sign_in(client)
        person = await mother.register()
        assert (await father.accept(await mother.invite(person["id"]))).status_code == 201
        answers = await asyncio.gather(*(p.delete(f"/v1/me/people/{person['id']}") for p in (mother, father)))
        assert [answer.status_code for answer in answers] == [204, 204]
        removed = "SELECT removed_at IS NOT NULL AND nickname_sealed = '' FROM person WHERE id = :id"
        assert await one(engine, removed, id=person["id"])


async def test_somebody_elses_person_is_as_unknown_as_one_that_does_not_exist(client: httpx2.AsyncClient) -> None:
    mother, stranger = await sign_in(client), await sign_in(client)
    person = await mother.register()
    for person_id in (person["id"], str(new_id())):
        path = f"/v1/me/people/{person_id}"
        answers = [
            await stranger.get(path),
            await stranger.put(path, CHILD),
            await stranger.delete(path),
            await stranger.put(f"{path}/consent", CHILD["consent"]),
            await stranger.post(f"{path}/invitations"),
        ]
        assert {(answer.status_code, code_of(answer)) for answer in answers} == {(404, "not_found")}
    assert (await stranger.get("/v1/me/people")).json()["items"] == []
    assert (await mother.get(f"/v1/me/people/{person['id']}")).json() == person


async def test_a_registration_sent_again_under_its_key_registers_one_person(client: httpx2.AsyncClient) -> None:
    parent = await sign_in(client)
    headers = {**parent.headers, "Idempotency-Key": "register-1"}
    answers = [await client.post("/v1/me/people", headers=headers, json=CHILD) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert len((await parent.get("/v1/me/people")).json()["items"]) == 1
