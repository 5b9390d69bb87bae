"""Giving back: to whom a place goes, and what everybody hears of it."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import httpx2
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.booking.claims.queries import lock_claim
from app.core.ids import new_id
from app.core.pages import write_cursor
from app.core.settings import Settings
from tests.booking.claims.conftest import Family, MakeFamily
from tests.booking.gate.builders import make_release
from tests.booking.gate.waits import until

pytestmark = pytest.mark.anyio

if TYPE_CHECKING:
    Db = asyncpg.Connection[asyncpg.Record]


async def until_left(client: httpx2.AsyncClient, release_id: object, expected: tuple[int, int]) -> None:
    """Return once so many are left and so many wait in the first pool; an answer may be repeated for a while."""

    async def as_expected() -> bool:
        pool = (await client.get(f"/v1/releases/{release_id}/availability")).json()["pools"][0]
        return (pool["left"], pool["waiting"]) == expected

    await until(as_expected)


async def test_a_place_given_back_is_free_for_the_next(
    db: "Db", make_family: MakeFamily, client: httpx2.AsyncClient
) -> None:
    made = await make_release(db, capacities=(1,))
    first, second = await make_family("first", made), await make_family("second", made)
    claim = (await first.grab()).json()["claim"]
    assert (await second.grab()).json()["code"] in {"full", "sold_out"}

    answer = await first.give_back(f"/v1/claims/{claim}")

    assert answer.status_code == 200
    assert answer.json()["state"] == "cancelled"
    await until_left(client, made.release_id, (1, 0))
    assert (await second.grab()).status_code == 201


async def test_a_place_given_back_goes_to_the_first_who_waits_and_no_newcomer_gets_it(
    db: "Db", make_family: MakeFamily
) -> None:
    made = await make_release(db, capacities=(1,), waitlist_limit=5)
    holder = await make_family("holder", made)
    waiters = [await make_family(f"waiter{n}", made) for n in range(3)]
    claim = (await holder.grab()).json()["claim"]
    waiting = [(await waiter.grab(waitlist=True)).json() for waiter in waiters]
    assert [w["bookings"][0]["position"] for w in waiting] == [1, 2, 3]

    await holder.give_back(f"/v1/claims/{claim}")

    newcomer = await make_family("newcomer", made)
    assert (await newcomer.grab()).status_code == 409
    promoted = await waiters[0].read(f"/v1/claims/{waiting[0]['claim']}")
    assert promoted.json()["state"] == "confirmed"
    assert promoted.json()["bookings"][0]["place_no"] == 1
    still_waiting = await waiters[1].read(f"/v1/claims/{waiting[1]['claim']}")
    assert still_waiting.json()["bookings"][0]["position"] == 1
    # The gate has heard of it too: the same claim again tells the place.
    again = await waiters[0].grab(claim_id=waiting[0]["claim"], waitlist=True)
    assert (again.status_code, again.json()["state"]) == (200, "confirmed")


async def test_a_waiter_who_leaves_lets_the_others_move_up(db: "Db", make_family: MakeFamily) -> None:
    made = await make_release(db, capacities=(1,), waitlist_limit=5)
    holder, one, two = [await make_family(name, made) for name in ("h", "w1", "w2")]
    claim = (await holder.grab()).json()["claim"]
    first = (await one.grab(waitlist=True)).json()["claim"]
    second = (await two.grab(waitlist=True)).json()["claim"]

    assert (await one.give_back(f"/v1/claims/{first}")).json()["state"] == "cancelled"
    await holder.give_back(f"/v1/claims/{claim}")

    assert (await two.read(f"/v1/claims/{second}")).json()["state"] == "confirmed"


async def test_giving_back_twice_gives_back_once(db: "Db", make_family: MakeFamily, client: httpx2.AsyncClient) -> None:
    made = await make_release(db, capacities=(2,))
    family = await make_family("twice", made)
    claim = (await family.grab()).json()["claim"]

    answers = await asyncio.gather(*(family.give_back(f"/v1/claims/{claim}") for _ in range(5)))

    assert {answer.status_code for answer in answers} == {200}
    await until_left(client, made.release_id, (2, 0))


async def test_more_families_give_back_with_keys_at_once_than_there_are_connections(
    db: "Db", make_family: MakeFamily, settings: Settings
) -> None:
    crowd = settings.database_pool_size + 2
    made = await make_release(db, capacities=(crowd,))
    families = [await make_family(f"keyed{number}", made) for number in range(crowd)]
    claims = [(await family.grab()).json() for family in families]
    # Half of them give the claim back, half the one booking in it.
    paths = [
        f"/v1/claims/{claim['claim']}" if number % 2 else f"/v1/bookings/{claim['bookings'][0]['id']}"
        for number, claim in enumerate(claims)
    ]

    async def give_back_with_key(family: Family, path: str) -> httpx2.Response:
        return await family.client.delete(path, headers=family.headers | {"Idempotency-Key": path})

    pairs = list(zip(families, paths, strict=True))
    first = await asyncio.gather(*(give_back_with_key(*pair) for pair in pairs))
    again = await asyncio.gather(*(give_back_with_key(*pair) for pair in pairs))

    assert [answer.status_code for answer in first + again] == [200] * 2 * crowd
    assert {answer.json()["state"] for answer in first + again} == {"cancelled"}
    assert not await db.fetchval("SELECT count(*) FROM idempotency_record")


async def test_one_sibling_gives_back_and_the_other_stays(
    db: "Db", make_family: MakeFamily, client: httpx2.AsyncClient
) -> None:
    made = await make_release(db, capacities=(2,))
    family = await make_family("siblings", made, people=2)
    bookings = (await family.grab()).json()["bookings"]

    answer = await family.give_back(f"/v1/bookings/{bookings[0]['id']}")

    assert [booking["status"] for booking in answer.json()["bookings"]] == ["cancelled", "confirmed"]
    assert answer.json()["state"] == "confirmed"
    await until_left(client, made.release_id, (1, 0))


async def test_nobody_gives_back_what_is_not_theirs(db: "Db", make_family: MakeFamily) -> None:
    made = await make_release(db, capacities=(1,))
    owner, stranger = await make_family("owner", made), await make_family("stranger", made)
    granted = (await owner.grab()).json()

    for path in (f"/v1/claims/{granted['claim']}", f"/v1/bookings/{granted['bookings'][0]['id']}"):
        refused = await stranger.give_back(path)
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert (await stranger.read(f"/v1/claims/{granted['claim']}")).status_code == 404
    assert (await stranger.give_back(f"/v1/claims/{uuid4()}")).status_code == 404
    assert (await owner.read(f"/v1/claims/{granted['claim']}")).json()["state"] == "confirmed"


async def test_after_the_deadline_a_place_stays(db: "Db", make_family: MakeFamily, settings: Settings) -> None:
    made = await make_release(db, capacities=(1,), start_hours=(1,))
    assert timedelta(hours=1) < timedelta(minutes=settings.cancel_deadline_minutes)
    family = await make_family("late", made)
    claim = (await family.grab()).json()["claim"]

    refused = await family.give_back(f"/v1/claims/{claim}")

    assert (refused.status_code, refused.json()["code"]) == (409, "too_late_to_cancel")
    assert "deadline" in refused.json()
    assert (await family.read(f"/v1/claims/{claim}")).json()["state"] == "confirmed"


async def test_a_storm_of_giving_back_and_grabbing_loses_no_place_and_doubles_none(
    db: "Db", make_family: MakeFamily, client: httpx2.AsyncClient
) -> None:
    made = await make_release(db, capacities=(5,), waitlist_limit=20)
    families = [await make_family(f"storm{n}", made) for n in range(30)]

    async def fickle(index: int) -> None:
        family = families[index]
        for _ in range(3):
            answer = await family.grab(waitlist=index % 2 == 0)
            if answer.status_code in {200, 201, 202} and index % 3:
                await family.give_back(f"/v1/claims/{answer.json()['claim']}")

    await asyncio.gather(*(fickle(index) for index in range(len(families))))
    # Whoever still has nothing asks once more, without competition.
    for family in families:
        await family.grab(waitlist=True)

    held = await db.fetch(
        "SELECT place_no, count(*) FROM booking WHERE pool_id = $1 AND status = 'confirmed' GROUP BY 1", made.pools[0]
    )
    assert sorted(row["place_no"] for row in held) == [1, 2, 3, 4, 5]
    assert {row["count"] for row in held} == {1}
    waiting = await db.fetchval(
        "SELECT count(*) FROM booking WHERE pool_id = $1 AND status = 'waitlisted'", made.pools[0]
    )
    await until_left(client, made.release_id, (0, waiting))


async def test_my_claims_come_newest_first_in_pages(db: "Db", make_family: MakeFamily) -> None:
    made = await make_release(db, capacities=(1, 1, 1))
    family = await make_family("pages", made)
    claims = [(await family.grab(ordinal)).json()["claim"] for ordinal in range(3)]

    first = (await family.read("/v1/me/claims?limit=2")).json()
    rest = (await family.read(f"/v1/me/claims?limit=2&cursor={first['next']}")).json()

    assert [claim["claim"] for claim in first["items"] + rest["items"]] == claims[::-1]
    assert rest["next"] is None
    outside = write_cursor("0001-01-01T00:00:00+14:00", str(new_id()))
    for cursor in ("nonsense", write_cursor("2026-01-01T00:00:00", str(new_id())), outside):
        refused = await family.read(f"/v1/me/claims?cursor={cursor}")
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "bad_cursor")


async def test_a_claim_that_is_committed_after_its_release_could_be_locked_is_left_alone(engine: AsyncEngine) -> None:
    asked: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    async with AsyncSession(engine) as session:
        event.listen(engine.sync_engine, "before_cursor_execute", note)
        try:
            assert await lock_claim(session, claim_id=new_id(), account_id=new_id()) is None
        finally:
            event.remove(engine.sync_engine, "before_cursor_execute", note)
    # The one that locks; a second would look again, and might find the claim.
    assert len(asked) == 1
    assert "pg_advisory_xact_lock_shared" in asked[0]
