"""The audit counts; it does not assume."""

import asyncio
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.ids import new_id
from tests.booking.releases.conftest import NewFamily
from tests.booking.releases.town import OTHER_STATION, Headers, Json, created, published, release_body, session_body

pytestmark = pytest.mark.anyio


async def audit_of(client: httpx2.AsyncClient, headers: Headers, release_id: str) -> Json:
    answer = await client.get(f"/v1/releases/{release_id}/audit", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def hold(engine: AsyncEngine, release_id: str, pool: str, *places: int) -> None:
    """Book these places behind the gate's back."""
    insert_claim = text("""
        INSERT INTO claim (id, release_id, account_id, epoch, seq, state, decided_at, fingerprint)
        VALUES (:claim, :release, :account, 1, 1, 'confirmed', now(), decode('00000000000000ff', 'hex'))
    """)
    insert_booking = text("""
        INSERT INTO booking (id, claim_id, position, person_id, pool_id, place_no, during, status)
        SELECT :id, :claim, 0, :person, pool.id, :place, pool.during, 'confirmed' FROM pool WHERE pool.id = :pool
    """)
    async with engine.begin() as connection:
        for place in places:
            claim: UUID = new_id()
            await connection.execute(insert_claim, {"claim": claim, "release": release_id, "account": new_id()})
            await connection.execute(
                insert_booking,
                {"id": new_id(), "claim": claim, "person": new_id(), "pool": pool, "place": place},
            )


async def settled_audit(client: httpx2.AsyncClient, headers: Headers, release_id: str) -> Json:
    """Return the audit once the gate has heard of every commit: its own part may lag by a quarter of a second."""
    async with asyncio.timeout(10):
        while not (audit := await audit_of(client, headers, release_id))["consistent"]:
            pass
    return audit


async def test_places_holders_and_waiters_are_counted_on_both_sides(
    client: httpx2.AsyncClient, staff: Headers, new_family: NewFamily
) -> None:
    body = release_body(session_body(0, capacity=2), session_body(1, capacity=5), opens_in_hours=-1)
    release = await published(client, staff, body)
    first, second = (pool["id"] for pool in release["pools"])
    for _ in range(2):
        assert (await (await new_family(release["id"])).grab(client, first)).status_code == 201
    assert (await (await new_family(release["id"])).grab(client, first, waitlist=True)).status_code == 202
    assert (await (await new_family(release["id"])).grab(client, second)).status_code == 201
    audit = await settled_audit(client, staff, release["id"])
    assert audit == {
        "release": release["id"],
        "places": 7,
        "held": 3,
        "waiting": 1,
        "free": 4,
        "double_held": 0,
        "over_capacity": 0,
        "online_held": 3,
        "online_free": 4,
        "gate": {"free": 4, "held": 3, "pending": 0, "waiting": 1},
        "consistent": True,
    }


async def test_places_given_out_on_the_spot_are_counted_and_not_held_against_the_gate(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine, new_family: NewFamily
) -> None:
    draft = await created(client, staff, release_body(session_body(capacity=5), opens_in_hours=-1))
    pool = draft["pools"][0]["id"]
    async with engine.begin() as connection:
        lanes = text("UPDATE place SET lane = :lane WHERE pool_id = :pool AND place_no = :number")
        for number, lane in ((1, "walk_in"), (2, "walk_in"), (3, "staff")):
            await connection.execute(lanes, {"pool": pool, "number": number, "lane": lane})
    assert (await client.post(f"/v1/releases/{draft['id']}/publish", headers=staff)).status_code == 200
    await hold(engine, draft["id"], pool, 1)
    assert (await (await new_family(draft["id"])).grab(client, pool)).status_code == 201
    audit = await settled_audit(client, staff, draft["id"])
    assert (audit["places"], audit["held"], audit["free"]) == (5, 2, 3)
    assert (audit["online_held"], audit["online_free"]) == (1, 1)
    assert audit["gate"] == {"free": 1, "held": 1, "pending": 0, "waiting": 0}


async def test_a_draft_has_no_gate(client: httpx2.AsyncClient, staff: Headers) -> None:
    draft = await created(client, staff, release_body(session_body(capacity=4)))
    audit = await audit_of(client, staff, draft["id"])
    assert (audit["places"], audit["free"], audit["held"], audit["gate"]) == (4, 4, 0, None)


async def test_staff_of_a_station_in_it_and_operators_read_it(
    client: httpx2.AsyncClient, staff: Headers, foreign_staff: Headers, operator: Headers, resident: Headers
) -> None:
    own = await published(client, staff, release_body(session_body()))
    shared = await published(client, operator, release_body(session_body(0), session_body(1, station_id=OTHER_STATION)))
    hidden = await created(client, staff, release_body())
    everybody: tuple[Headers, ...] = ({}, resident, foreign_staff, staff, operator)

    async def statuses(release: Json) -> list[int]:
        path = f"/v1/releases/{release['id']}/audit"
        return [(await client.get(path, headers=headers)).status_code for headers in everybody]

    assert await statuses(own) == [401, 403, 403, 200, 200]
    assert await statuses(shared) == [401, 403, 200, 200, 200]
    assert await statuses(hidden) == [401, 404, 404, 200, 200]
    assert (await client.get(f"/v1/releases/{new_id()}/audit", headers=operator)).status_code == 404


async def test_what_the_constraints_forbid_would_be_seen(
    client: httpx2.AsyncClient, staff: Headers, engine: AsyncEngine
) -> None:
    """With the guards taken away, three hold one place and one holds a place that does not exist."""
    release = await published(client, staff, release_body(session_body(capacity=2), opens_in_hours=-1))
    pool = release["pools"][0]["id"]
    async with engine.begin() as connection:
        # This module's own database: nobody else misses them. This test is the last one in it.
        await connection.execute(text("DROP INDEX uq_booking_one_holder_each_place"))
        await connection.execute(text("ALTER TABLE booking DROP CONSTRAINT fk_booking_place"))
    await hold(engine, release["id"], pool, 1, 1, 1, 9)
    audit = await audit_of(client, staff, release["id"])
    assert (audit["places"], audit["held"], audit["free"]) == (2, 4, 1)
    assert (audit["double_held"], audit["over_capacity"], audit["consistent"]) == (2, 2, False)
