"""Units and stations: read by everybody, made by operators, changed by their staff."""

from typing import Any
from uuid import UUID

import httpx2
import pytest

from app.core.ids import new_id
from app.programme.demonstration import demonstration_station_id
from tests.booking.releases.town import OTHER_STATION, STATION, Headers, Json

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("town")]


def station_body(**changes: object) -> Json:
    return {
        "kind": "service_station",
        "name": f"新站 {new_id()}",
        "parent_id": None,
        "host_kind": "village",
        "unit_id": None,
        "address": "示范路1号",
        "longitude_deg": 121.1,
        "latitude_deg": 31.1,
        **changes,
    }


def change_body(**changes: object) -> Json:
    body = station_body(**changes)
    return {name: value for name, value in body.items() if name not in {"kind", "parent_id"}}


async def listed(client: httpx2.AsyncClient, path: str) -> list[Json]:
    items: list[Json] = []
    cursor = ""
    for _ in range(300):
        answer = await client.get(f"{path}&{cursor}")
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items += page["items"]
        if page["next"] is None:
            return items
        cursor = f"cursor={page['next']}"
    pytest.fail("the list never ends")


async def test_pages_show_every_unit_once(client: httpx2.AsyncClient) -> None:
    names = [unit["name"] for unit in await listed(client, "/v1/units?limit=1")]
    assert len(names) == len(set(names)) >= 29


@pytest.mark.parametrize("limit", [7, 100])
async def test_pages_show_every_station_once(client: httpx2.AsyncClient, limit: int) -> None:
    stations = await listed(client, f"/v1/stations?limit={limit}")
    assert len({station["id"] for station in stations}) == len(stations) >= 119
    points = await listed(client, f"/v1/stations?kind=service_point&limit={limit}")
    assert {point["kind"] for point in points} == {"service_point"}
    assert len(points) >= 90
    unit_id = stations[0]["unit_id"]
    in_unit = await listed(client, f"/v1/stations?unit_id={unit_id}&limit={limit}")
    assert in_unit == [station for station in stations if station["unit_id"] == unit_id]


async def test_a_station_named_with_any_character_does_not_break_the_pages(
    client: httpx2.AsyncClient, operator: Headers
) -> None:
    for name in ("!\u3000全角空格", "!\u00a0\u200d零宽", "!😀" * 30, '!"\\'):
        made = await client.post("/v1/stations", json=station_body(name=name), headers=operator)
        assert made.status_code == 201, made.text
    names = [station["name"] for station in await listed(client, "/v1/stations?limit=1")]
    assert len(names) == len(set(names)) >= 123


@pytest.mark.parametrize("path", ["/v1/units", "/v1/stations?kind=service_station", f"/v1/stations/{STATION}"])
async def test_who_has_the_newest_gets_304(client: httpx2.AsyncClient, path: str) -> None:
    first = await client.get(path)
    again = await client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


async def test_a_changed_station_has_a_new_tag(client: httpx2.AsyncClient, staff: Headers) -> None:
    path = f"/v1/stations/{STATION}"
    before = await client.get(path)
    body = change_body(address="搬到二号楼")
    changed = await client.put(path, json=body, headers=staff)
    assert changed.status_code == 200, changed.text
    after = await client.get(path, headers={"If-None-Match": before.headers["etag"]})
    assert (after.status_code, after.json()) == (200, changed.json())
    assert after.json()["address"] == "搬到二号楼"


async def test_roles_decide_who_makes_and_changes(
    client: httpx2.AsyncClient, staff: Headers, foreign_staff: Headers, operator: Headers, resident: Headers
) -> None:
    everybody: tuple[Headers, ...] = ({}, resident, foreign_staff, staff, operator)

    async def statuses(method: str, path: str, make: Any) -> list[int]:
        return [(await client.request(method, path, json=make(), headers=headers)).status_code for headers in everybody]

    only_operators = [401, 403, 403, 403, 201]
    assert await statuses("POST", "/v1/stations", station_body) == only_operators
    assert await statuses("POST", "/v1/units", lambda: {"kind": "village", "name": f"村 {new_id()}"}) == only_operators
    assert await statuses("PUT", f"/v1/stations/{STATION}", change_body) == [401, 403, 403, 200, 200]
    assert await statuses("PUT", f"/v1/stations/{new_id()}", change_body) == [401, 403, 403, 403, 404]


async def test_a_point_belongs_to_a_service_station(client: httpx2.AsyncClient, operator: Headers) -> None:
    point = station_body(kind="service_point", parent_id=STATION)
    made = await client.post("/v1/stations", json=point, headers=operator)
    assert (made.status_code, made.json()["parent_id"]) == (201, STATION)
    below_a_point = station_body(kind="service_point", parent_id=made.json()["id"])
    answer = await client.post("/v1/stations", json=below_a_point, headers=operator)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "not_a_service_station")


async def test_names_are_taken_once(client: httpx2.AsyncClient, operator: Headers, staff: Headers) -> None:
    taken = (await client.get(f"/v1/stations/{OTHER_STATION}")).json()["name"]
    made = await client.post("/v1/stations", json=station_body(name=taken), headers=operator)
    changed = await client.put(f"/v1/stations/{STATION}", json=change_body(name=taken), headers=staff)
    unit = {"kind": "village", "name": "示范村01"}
    again = await client.post("/v1/units", json=unit, headers=operator)
    assert [answer.json()["code"] for answer in (made, changed, again)] == [
        "station_name_taken",
        "station_name_taken",
        "unit_name_taken",
    ]
    assert {answer.status_code for answer in (made, changed, again)} == {409}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 81}, "name"),
        ({"name": "a\u0000"}, "name"),
        ({"name": 7}, "name"),
        ({"kind": "tent"}, "kind"),
        ({"host_kind": "ghost"}, "host_kind"),
        ({"unit_id": str(new_id())}, "unit_id"),
        ({"unit_id": "x"}, "unit_id"),
        ({"parent_id": STATION}, "parent_id"),
        ({"kind": "service_point"}, "parent_id"),
        ({"kind": "service_point", "parent_id": str(new_id())}, "parent_id"),
        ({"address": "x" * 201}, "address"),
        ({"longitude_deg": 181}, "longitude_deg"),
        ({"latitude_deg": "31"}, "latitude_deg"),
        ({"latitude_deg": None}, "latitude_deg"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_wrong_station_is_refused_by_the_field(
    client: httpx2.AsyncClient, operator: Headers, changes: Json, field: str
) -> None:
    answer = await client.post("/v1/stations", json=station_body(**changes), headers=operator)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_an_unknown_unit_is_named_when_a_station_changes(client: httpx2.AsyncClient, staff: Headers) -> None:
    answer = await client.put(f"/v1/stations/{STATION}", json=change_body(unit_id=str(new_id())), headers=staff)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "unit_id")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/v1/stations/{UUID(int=7)}", 404),
        ("/v1/stations/one", 422),
        ("/v1/stations?kind=tent", 422),
        ("/v1/stations?unit_id=x", 422),
        ("/v1/stations?cursor=x", 422),
        ("/v1/units?cursor=WyJhIl0", 422),
        ("/v1/units?limit=1000", 422),
        (f"/v1/stations?unit_id={demonstration_station_id(1)}", 200),
    ],
)
async def test_a_wrong_question_is_refused(client: httpx2.AsyncClient, path: str, status: int) -> None:
    assert (await client.get(path)).status_code == status
