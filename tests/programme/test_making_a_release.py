"""A whole release with its sessions is made in one request, by those who may, or not at all."""

from datetime import datetime
from typing import Any

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.ids import new_id
from app.programme.demonstration import demonstration_release_request, demonstration_station_id
from tests.booking.releases.town import (
    OTHER_STATION,
    STATION,
    Headers,
    Json,
    created,
    in_hours,
    release_body,
    session_body,
)

pytestmark = pytest.mark.anyio


async def stored(engine: AsyncEngine) -> tuple[int, ...]:
    """Count everything that a release consists of."""
    async with engine.connect() as connection:
        row = await connection.execute(
            text("""SELECT (SELECT count(*) FROM release), (SELECT count(*) FROM pool), (SELECT count(*) FROM place),
                           (SELECT count(*) FROM activity), (SELECT count(*) FROM activity_session)""")
        )
        return tuple(row.one())


async def test_one_request_makes_release_activities_sessions_pools_and_places(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    before = await stored(engine)
    response = await client.post(
        "/v1/releases",
        json=release_body(session_body(0, capacity=35), session_body(1, capacity=17, age_min=None, age_max=None)),
        headers=staff,
    )
    assert response.status_code == 201, response.text
    release = response.json()
    assert response.headers["location"] == f"/v1/releases/{release['id']}"
    assert (release["state"], release["rules_version"]) == ("draft", None)
    assert [(pool["capacity"], pool["age_min"], pool["title"]) for pool in release["pools"]] == [
        (35, 6, "少儿书法0"),
        (17, None, "少儿书法1"),
    ]
    after = await stored(engine)
    assert tuple(b - a for a, b in zip(before, after, strict=True)) == (1, 2, 52, 2, 2)


async def test_the_same_idempotency_key_makes_one_release(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    before = await stored(engine)
    keyed = {**staff, "Idempotency-Key": str(new_id())}
    body = release_body()
    answers = [await client.post("/v1/releases", json=body, headers=keyed) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert (await stored(engine))[0] == before[0] + 1


async def test_the_demonstration_release_has_fourteen_sessions_and_three_hundred_places(
    client: httpx2.AsyncClient, operator: Headers
) -> None:
    body = demonstration_release_request(
        [demonstration_station_id(number) for number in range(1, 6)], datetime.fromisoformat(in_hours(1))
    )
    release = await created(client, operator, body)
    capacities = [pool["capacity"] for pool in release["pools"]]
    assert sorted(capacities, reverse=True) == [35] * 3 + [18] * 8 + [17] * 3
    assert (len(capacities), sum(capacities)) == (14, 300)
    assert len({pool["station"]["id"] for pool in release["pools"]}) == 5
    assert all(pool["age_min"] <= 7 and pool["age_max"] >= 11 for pool in release["pools"])


async def test_sessions_of_one_title_are_dates_of_one_activity(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    before = await stored(engine)
    await created(client, staff, release_body(*(session_body(week, title="六周陶艺营") for week in range(6))))
    after = await stored(engine)
    assert (after[3] - before[3], after[4] - before[4]) == (1, 6)


async def test_a_session_may_belong_to_an_activity_that_is_there_already(
    client: httpx2.AsyncClient, staff: Headers, operator: Headers, engine: AsyncEngine
) -> None:
    page = (await client.get(f"/v1/activities?station_id={STATION}&limit=1")).json()
    activity = page["items"][0]
    session = session_body(0, activity_id=activity["id"])
    del session["title"]
    del session["summary"]
    before = await stored(engine)
    release = await created(client, staff, release_body(session))
    assert (release["pools"][0]["title"], release["pools"][0]["summary"]) == (activity["title"], activity["summary"])
    assert (await stored(engine))[3] == before[3]
    for changes in ({"station_id": OTHER_STATION}, {"activity_id": str(new_id())}):
        answer = await client.post("/v1/releases", json=release_body({**session, **changes}), headers=operator)
        assert [error["field"] for error in answer.json()["errors"]] == ["sessions[0].activity_id"]


async def test_only_staff_of_every_station_named_and_operators_make_one(
    client: httpx2.AsyncClient,
    staff: Headers,
    foreign_staff: Headers,
    operator: Headers,
    resident: Headers,
    engine: AsyncEngine,
) -> None:
    before = await stored(engine)

    async def statuses(body: Json) -> list[int]:
        everybody: tuple[Headers, ...] = ({}, resident, foreign_staff, staff)
        return [(await client.post("/v1/releases", json=body, headers=headers)).status_code for headers in everybody]

    shared = release_body(session_body(0), session_body(1, station_id=OTHER_STATION))
    unknown = release_body(session_body(0, station_id=str(new_id())))
    assert await statuses(shared) == [401, 403, 403, 403]
    assert await statuses(unknown) == [401, 403, 403, 403]
    assert await statuses(release_body()) == [401, 403, 403, 201]
    assert (await client.post("/v1/releases", json=shared, headers=operator)).status_code == 201
    assert (await stored(engine))[0] == before[0] + 2


def without(body: Json, name: str) -> Json:
    return {key: value for key, value in body.items() if key != name}


BAD: list[tuple[str, Any, str]] = [
    ("no title", lambda: without(release_body(), "title"), "title"),
    ("blank title", lambda: release_body(title="  "), "title"),
    ("long title", lambda: release_body(title="课" * 121), "title"),
    ("NUL in title", lambda: release_body(title="a\u0000b"), "title"),
    ("unknown mode", lambda: release_body(mode="lottery"), "mode"),
    ("unknown field", lambda: release_body(colour="red"), "colour"),
    ("time without zone", lambda: release_body(opens_at="2099-07-01T20:00:00"), "opens_at"),
    ("time as a number", lambda: release_body(opens_at=1_900_000_000), "opens_at"),
    ("a day that is none", lambda: release_body(opens_at="2099-02-30T20:00:00+08:00"), "opens_at"),
    ("closing before opening", lambda: release_body(opens_in_hours=5, closes_in_hours=4), "closes_at"),
    (
        "closing at the opening",
        lambda: release_body(opens_at="2026-01-01T00:00:00Z", closes_at="2026-01-01T00:00:00Z"),
        "closes_at",
    ),
    ("closing after the last session has begun", lambda: release_body(session_body(), closes_in_hours=49), "closes_at"),
    ("closing in the past", lambda: release_body(opens_in_hours=-9, closes_in_hours=-1), "closes_at"),
    ("person limit 0", lambda: release_body(person_limit=0), "person_limit"),
    ("person limit as text", lambda: release_body(person_limit="2"), "person_limit"),
    ("account limit too large", lambda: release_body(account_limit=1_001), "account_limit"),
    ("account limit missing", lambda: without(release_body(), "account_limit"), "account_limit"),
    ("rules too long", lambda: release_body(rules="x" * 4_001), "rules"),
    ("no sessions", lambda: release_body(sessions=[]), "sessions"),
    ("sessions are no list", lambda: release_body(sessions={"0": session_body()}), "sessions"),
    ("201 sessions", lambda: release_body(sessions=[minimal_session(n) for n in range(201)]), "sessions"),
    ("session is a text", lambda: release_body(sessions=[session_body(), "x"]), "sessions[1]"),
    ("capacity 0", lambda: bad_third(capacity=0), "sessions[3].capacity"),
    ("capacity beyond the limit", lambda: bad_third(capacity=10_001), "sessions[3].capacity"),
    ("capacity with a fraction", lambda: bad_third(capacity=3.5), "sessions[3].capacity"),
    ("capacity true", lambda: bad_third(capacity=True), "sessions[3].capacity"),
    ("capacity huge", lambda: bad_third(capacity=10**15), "sessions[3].capacity"),
    ("negative waiting list", lambda: bad_third(waitlist_limit=-1), "sessions[3].waitlist_limit"),
    ("negative age", lambda: bad_third(age_min=-1), "sessions[3].age_min"),
    ("ages upside down", lambda: bad_third(age_min=9, age_max=8), "sessions[3].age_max"),
    ("ends before it starts", lambda: bad_third(ends_at=in_hours(1)), "sessions[3].ends_at"),
    ("lasts a month", lambda: bad_third(ends_at=in_hours(900)), "sessions[3].ends_at"),
    (
        "starts before the opening",
        lambda: bad_third(starts_at=in_hours(0.5), ends_at=in_hours(50)),
        "sessions[3].starts_at",
    ),
    ("session time without zone", lambda: bad_third(starts_at="2099-01-01T00:00:00"), "sessions[3].starts_at"),
    ("no title and no activity", lambda: bad_third(title=None), "sessions[3].title"),
    ("title and activity", lambda: bad_third(activity_id=str(new_id())), "sessions[3].title"),
    ("unknown activity", lambda: bad_third(activity_id=str(new_id()), title=None), "sessions[3].activity_id"),
    ("unknown audience", lambda: bad_third(audience="cats"), "sessions[3].audience"),
    ("unknown station", lambda: bad_third(station_id=str(new_id())), "sessions[3].station_id"),
    ("station is no id", lambda: bad_third(station_id="one"), "sessions[3].station_id"),
    ("unknown unit", lambda: bad_third(resident_unit_id=str(new_id())), "sessions[3].resident_unit_id"),
    ("long room", lambda: bad_third(room="x" * 81), "sessions[3].room"),
    ("unknown session field", lambda: bad_third(price=1), "sessions[3].price"),
    ("too many places at all", lambda: release_body(sessions=[minimal_session(n) for n in range(101)]), "sessions"),
]


def minimal_session(number: int) -> Json:
    """Return a session with as few characters as possible: 201 of them must fit into 64 KiB."""
    return {
        "station_id": STATION,
        "title": "a",
        "starts_at": in_hours(48 + number),
        "ends_at": in_hours(49 + number),
        "capacity": 10_000,
    }


def bad_third(**changes: object) -> Json:
    return release_body(*(session_body(n) for n in range(3)), session_body(3, **changes))


@pytest.mark.parametrize(("make", "field"), [(make, field) for _, make, field in BAD], ids=[name for name, _, _ in BAD])
async def test_a_wrong_release_is_refused_by_the_field_and_leaves_nothing(
    client: httpx2.AsyncClient, operator: Headers, engine: AsyncEngine, make: Any, field: str
) -> None:
    before = await stored(engine)
    answer = await client.post("/v1/releases", json=make(), headers=operator)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert await stored(engine) == before


async def test_a_body_that_is_no_release_at_all_is_refused(client: httpx2.AsyncClient, operator: Headers) -> None:
    json_type = {"Content-Type": "application/json"}
    cases: list[tuple[bytes, Headers, int]] = [
        (b"{", json_type, 400),
        (b"[]", json_type, 422),
        (b"null", json_type, 422),
        (b'{"title": "a"}', {"Content-Type": "text/plain"}, 415),
        (b'{"title": "' + b"a" * 70_000 + b'"}', json_type, 413),
    ]
    for content, headers, status in cases:
        answer = await client.post("/v1/releases", content=content, headers={**operator, **headers})
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
