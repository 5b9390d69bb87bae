"""A capacity goes up and down, never below what is held, and never past a claim that is being committed."""

import asyncio

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.releases.policy import PLACES_PER_RELEASE_MAX
from app.booking.releases.queries import lock_release_exclusively
from app.core.db import transaction
from app.core.ids import new_id
from tests.booking.releases.conftest import NewFamily
from tests.booking.releases.town import Family, Headers, Json, created, published, release_body, session_body

pytestmark = pytest.mark.anyio


async def set_capacity(client: httpx2.AsyncClient, staff: Headers, pool: str, capacity: object) -> httpx2.Response:
    body = {"capacity": capacity, "reason": "换教室"}
    return await client.put(f"/v1/pools/{pool}/capacity", json=body, headers=staff)


async def places_of(engine: AsyncEngine, pool: str) -> tuple[list[int], list[int]]:
    """Return all place numbers and the held ones, on a connection of its own."""
    async with engine.connect() as connection:
        all_of_them = await connection.execute(
            text("SELECT place_no FROM place WHERE pool_id = :pool ORDER BY place_no"), {"pool": pool}
        )
        held = await connection.execute(
            text("SELECT place_no FROM booking WHERE pool_id = :pool AND status = 'confirmed' ORDER BY place_no"),
            {"pool": pool},
        )
        return list(all_of_them.scalars()), list(held.scalars())


async def one_pool(client: httpx2.AsyncClient, staff: Headers, **changes: object) -> tuple[str, str]:
    """Publish an open release of one pool; return both ids."""
    release = await published(client, staff, release_body({**session_body(), **changes}, opens_in_hours=-1))
    return release["id"], release["pools"][0]["id"]


async def booked(client: httpx2.AsyncClient, family: Family, pool: str) -> Json:
    answer = await family.grab(client, pool)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_new_places_come_after_the_highest_and_can_be_had(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine, new_family: NewFamily
) -> None:
    release, pool = await one_pool(client, staff, capacity=1, waitlist_limit=0)
    await booked(client, await new_family(release), pool)
    late = await new_family(release)
    assert (await late.grab(client, pool)).json()["code"] in {"full", "sold_out"}
    answer = await set_capacity(client, staff, pool, 3)
    assert (answer.status_code, answer.json()["id"], answer.json()["capacity"]) == (200, pool, 3)
    await booked(client, late, pool)
    places, held = await places_of(engine, pool)
    assert (places, len(held)) == ([1, 2, 3], 2)


async def test_nobody_hears_sold_out_of_new_places_when_the_process_dies_before_the_gate_has_them(
    client: httpx2.AsyncClient, staff: Headers, new_family: NewFamily, api: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, pool = await one_pool(client, staff, capacity=1, waitlist_limit=0)
    await booked(client, await new_family(release), pool)
    late = await new_family(release)

    async def dies(_: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as moment:
        moment.setattr(api.state.gate, "rebuild", dies)
        assert (await set_capacity(client, staff, pool, 2)).status_code == 200
    await booked(client, late, pool)


async def test_new_places_go_to_those_who_wait_first(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine, new_family: NewFamily
) -> None:
    release, pool = await one_pool(client, staff, capacity=1)
    await booked(client, await new_family(release), pool)
    waiting = await new_family(release)
    claim_id = new_id()
    assert (await waiting.grab(client, pool, waitlist=True, claim_id=claim_id)).json()["state"] == "waitlisted"
    assert (await set_capacity(client, staff, pool, 2)).status_code == 200
    assert (await waiting.grab(client, pool, waitlist=True, claim_id=claim_id)).json()["state"] == "confirmed"
    assert await places_of(engine, pool) == ([1, 2], [1, 2])


async def test_lowering_takes_free_places_from_the_highest_down(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine, new_family: NewFamily
) -> None:
    release, pool = await one_pool(client, staff, capacity=6)
    claims = [await booked(client, await new_family(release), pool) for _ in range(3)]
    _, held = await places_of(engine, pool)
    below = await set_capacity(client, staff, pool, 2)
    assert (below.status_code, below.json()["code"], below.json()["held"]) == (409, "capacity_below_held", 3)
    assert len((await places_of(engine, pool))[0]) == 6, "a refusal changes nothing"
    assert (await set_capacity(client, staff, pool, 4)).json()["capacity"] == 4
    places, still_held = await places_of(engine, pool)
    free = sorted(set(range(1, 7)) - set(held))
    assert still_held == held
    assert places == sorted([*held, free[0]])
    assert (await set_capacity(client, staff, pool, 3)).json()["capacity"] == 3
    last = await new_family(release)
    assert (await last.grab(client, pool)).json()["code"] in {"full", "sold_out"}
    assert len(claims) == 3


async def test_a_place_that_somebody_gave_back_can_be_taken_away_and_their_booking_stays(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine, new_family: NewFamily
) -> None:
    release, pool = await one_pool(client, staff, capacity=2, waitlist_limit=0)
    families = [await new_family(release) for _ in range(2)]
    claims = [await booked(client, family, pool) for family in families]
    for family, claim in zip(families, claims, strict=True):
        given_back = await client.delete(f"/v1/claims/{claim['claim']}", headers=family.headers)
        assert given_back.status_code < 300, given_back.text
    assert (await set_capacity(client, staff, pool, 1)).status_code == 200
    assert await places_of(engine, pool) == ([1], [])
    async with engine.connect() as connection:
        kept = await connection.execute(text("SELECT status FROM booking WHERE pool_id = :pool"), {"pool": pool})
        assert list(kept.scalars()) == ["cancelled", "cancelled"]
    await booked(client, await new_family(release), pool)


async def test_a_release_has_no_more_places_by_a_change_than_it_could_be_made_with(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    draft = await created(client, staff, release_body(session_body(0, capacity=1), session_body(1, capacity=1)))
    small, large = (pool["id"] for pool in draft["pools"])
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO place (pool_id, place_no) SELECT :pool, generate_series(2, CAST(:last AS integer))"),
            {"pool": large, "last": PLACES_PER_RELEASE_MAX - 2},
        )
    assert (await set_capacity(client, staff, small, 2)).status_code == 200
    beyond = await set_capacity(client, staff, small, 3)
    assert (beyond.status_code, beyond.json()["code"]) == (422, "validation_failed")
    (error,) = beyond.json()["errors"]
    assert (error["field"], error["code"]) == ("capacity", "too_many_places")
    assert (await places_of(engine, small))[0] == [1, 2]


async def test_the_same_capacity_again_changes_nothing(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    _, pool = await one_pool(client, staff, capacity=4)
    answers = [await set_capacity(client, staff, pool, 5) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert (await places_of(engine, pool))[0] == [1, 2, 3, 4, 5]


async def test_a_drafts_capacity_can_be_changed(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    draft = await created(client, staff, release_body(session_body(capacity=2)))
    pool = draft["pools"][0]["id"]
    assert (await set_capacity(client, staff, pool, 4)).status_code == 200
    assert len((await places_of(engine, pool))[0]) == 4


async def test_only_the_stations_staff_and_operators_change_it(
    client: httpx2.AsyncClient, staff: Headers, foreign_staff: Headers, operator: Headers, resident: Headers
) -> None:
    _, pool = await one_pool(client, staff)
    statuses = [
        (await set_capacity(client, headers, pool, 4)).status_code
        for headers in ({}, resident, foreign_staff, staff, operator)
    ]
    assert statuses == [401, 403, 403, 200, 200]
    assert (await set_capacity(client, operator, str(new_id()), 4)).status_code == 404
    draft = await created(client, staff, release_body())
    assert (await set_capacity(client, foreign_staff, draft["pools"][0]["id"], 4)).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"capacity": 0, "reason": "x"}, "capacity"),
        ({"capacity": 10_001, "reason": "x"}, "capacity"),
        ({"capacity": "4", "reason": "x"}, "capacity"),
        ({"capacity": 4.0, "reason": "x"}, "capacity"),
        ({"capacity": True, "reason": "x"}, "capacity"),
        ({"capacity": 4}, "reason"),
        ({"capacity": 4, "reason": ""}, "reason"),
        ({"capacity": 4, "reason": "a\u0000b"}, "reason"),
        ({"capacity": 4, "reason": "x" * 301}, "reason"),
        ({"capacity": 4, "reason": "x", "lane": "staff"}, "lane"),
    ],
)
async def test_a_wrong_capacity_is_refused_by_name(
    client: httpx2.AsyncClient, staff: Headers, body: Json, field: str
) -> None:
    _, pool = await one_pool(client, staff)
    answer = await client.put(f"/v1/pools/{pool}/capacity", json=body, headers=staff)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_a_change_waits_for_the_commits_under_way(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    release, pool = await one_pool(client, staff)
    async with transaction(engine) as db:
        await lock_release_exclusively(db, release_id=release)  # pyright: ignore[reportArgumentType] - text of a UUID
        changing = asyncio.create_task(set_capacity(client, staff, pool, 9))
        # The change has reached the lock, and stands there.
        async with asyncio.timeout(10), engine.connect() as observer:
            while not await observer.scalar(
                text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            ):
                await observer.rollback()
        assert not changing.done()
        assert len((await places_of(engine, pool))[0]) == 3
    assert (await changing).status_code == 200
    assert len((await places_of(engine, pool))[0]) == 9


async def test_claims_racing_with_changes_of_capacity_never_hold_more_than_there_is(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine, new_family: NewFamily
) -> None:
    release, pool = await one_pool(client, staff, capacity=10, waitlist_limit=0)
    families = [await new_family(release) for _ in range(30)]

    async def grab_until_answered(family: Family) -> int:
        claim_id = new_id()
        body: dict[str, object] = {}
        for _ in range(60):
            answer = await family.grab(client, pool, claim_id=claim_id)
            body = answer.json()
            # Repeated by the same id as a phone does; a `claim_void` wants a new one.
            if answer.status_code in {201, 200} or body.get("code") == "sold_out":
                return answer.status_code
            if body.get("code") == "claim_void":
                claim_id = new_id()
            # As the server asks a phone to.
            await asyncio.sleep(float(str(body.get("retry_after_ms", 0))) / 1000)
        pytest.fail(f"no answer in the end, but {body}")

    async def change() -> list[int]:
        return [(await set_capacity(client, staff, pool, capacity)).status_code for capacity in (14, 6, 12, 8, 15)]

    outcomes, changed = await asyncio.gather(
        asyncio.gather(*(grab_until_answered(family) for family in families)), change()
    )
    assert set(changed) <= {200, 409}
    assert changed[-1] == 200
    places, held = await places_of(engine, pool)
    assert len(places) == 15
    assert len(held) == len(set(held)) == sum(outcome < 300 for outcome in outcomes)
    assert set(held) <= set(places)
    audit = (await client.get(f"/v1/releases/{release}/audit", headers=staff)).json()
    assert (audit["places"], audit["held"], audit["double_held"], audit["over_capacity"]) == (15, len(held), 0, 0)


async def capacity_of(engine: AsyncEngine, pool: str) -> int:
    async with engine.connect() as connection:
        statement = text("SELECT capacity FROM pool WHERE id = :pool")
        return (await connection.execute(statement, {"pool": pool})).scalar_one()


@pytest.mark.parametrize(
    ("change", "now"),
    [
        ("INSERT INTO place (pool_id, place_no) SELECT CAST(:pool AS uuid), n FROM generate_series(11, 15) AS n", 8),
        ("DELETE FROM place WHERE pool_id = :pool AND place_no > 1", 1),
        ("DELETE FROM place WHERE pool_id = :pool", 0),
        ("UPDATE place SET lane = 'staff' WHERE pool_id = :pool", 3),
        ("INSERT INTO place (pool_id, place_no) VALUES (:pool, 1) ON CONFLICT DO NOTHING", 3),
    ],
)
async def test_whoever_makes_or_removes_places_by_hand_changes_the_capacity_with_them(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine, change: str, now: int
) -> None:
    _, pool = await one_pool(client, staff, capacity=3)
    async with engine.begin() as connection:
        await connection.execute(text(change), {"pool": pool})
    assert await capacity_of(engine, pool) == now
    assert len((await places_of(engine, pool))[0]) == now


async def test_places_of_several_pools_made_at_once_are_counted_for_each_of_them(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    pools = [(await one_pool(client, staff, capacity=capacity))[1] for capacity in (1, 2)]
    add = "INSERT INTO place (pool_id, place_no) SELECT unnest(CAST(:pools AS uuid[])), generate_series(7, 9)"
    # `unnest` and `generate_series` go in step: two places for two pools, and one for none.
    async with engine.begin() as connection:
        await connection.execute(text(f"{add} LIMIT 2"), {"pools": pools})
    assert [await capacity_of(engine, pool) for pool in pools] == [2, 3]


async def test_two_who_make_places_at_the_same_time_are_both_counted(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    _, pool = await one_pool(client, staff, capacity=1)

    numbered = "SELECT CAST(:pool AS uuid), n FROM generate_series(CAST(:first AS int), CAST(:first AS int) + 4) AS n"

    async def add(first: int) -> None:
        async with engine.begin() as connection:
            statement = text(f"INSERT INTO place (pool_id, place_no) {numbered}")
            await connection.execute(statement, {"pool": pool, "first": first})

    await asyncio.gather(*(add(first) for first in range(10, 60, 10)))
    assert await capacity_of(engine, pool) == 26


async def test_a_place_does_not_move_to_another_pool(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    pools = [(await one_pool(client, staff, capacity=1))[1] for _ in range(2)]
    move = text("UPDATE place SET pool_id = :to, place_no = 9 WHERE pool_id = :from")
    async with engine.connect() as connection:
        with pytest.raises(IntegrityError, match="a place stays in its pool"):
            await connection.execute(move, {"from": pools[0], "to": pools[1]})
    assert [await capacity_of(engine, pool) for pool in pools] == [1, 1]
