"""The demonstration town has the town's figures, is the same each time, and is there once."""

import time
from collections import Counter
from datetime import UTC, datetime

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.db import transaction
from app.programme.demonstration import SeedReport, demonstration_release_request, seed_demonstration
from tests.booking.releases.town import STATION

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)

# Every row as it stands, without the instants at which the database wrote it.
ROWS = text("""
    SELECT row(unit.id, kind, name)::text FROM unit
    UNION ALL SELECT row(id, kind, name, parent_id, host_kind, unit_id, address, longitude_deg, latitude_deg)::text
              FROM station
    UNION ALL SELECT activity::text FROM activity
    UNION ALL SELECT activity_session::text FROM activity_session
    ORDER BY 1
""")


async def seed(engine: AsyncEngine, *, number: int, now: datetime = NOW) -> SeedReport:
    async with transaction(engine) as db:
        return await seed_demonstration(db, seed=number, now=now)


async def rows(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.execute(ROWS)).scalars())


async def empty(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE unit, station, activity, activity_session, pool, release CASCADE"))


async def test_the_figures_are_the_towns(engine: AsyncEngine, client: httpx2.AsyncClient) -> None:
    await empty(engine)
    began = time.monotonic()
    report = await seed(engine, number=1)
    assert time.monotonic() - began < 2.0
    assert (report.units, report.stations, report.points, report.activities) == (29, 29, 90, 117)
    items = (await client.get(f"/v1/activities?station_id={STATION}&limit=100")).json()
    rest = (await client.get(f"/v1/activities?station_id={STATION}&limit=100&cursor={items['next']}")).json()
    activities = items["items"] + rest["items"]
    held = [activity for activity in activities if activity["sessions_held"]]
    assert (len(activities), len(held)) == (117, 108)
    assert all(activity["sessions_cancelled"] for activity in activities if not activity["sessions_held"])
    audiences = Counter(activity["audience"] for activity in activities)
    assert [round(100 * audiences[audience] / 117) for audience in ("pupils", "elderly")] == [34, 28]
    months = Counter(activity["first_starts_at"][:7] for activity in held)
    assert sorted(months) == [f"2026-{month:02d}" for month in range(3, 9)], "half a year, and it is over"
    assert {month for month, _ in months.most_common(2)} == {"2026-07", "2026-08"}
    assert any(activity["sessions_held"] > 1 and activity["sessions_cancelled"] for activity in held)


async def test_one_day_of_summer_has_three_classes_for_pupils(engine: AsyncEngine) -> None:
    await empty(engine)
    await seed(engine, number=1)
    async with engine.connect() as connection:
        classes = await connection.scalar(
            text("""
                SELECT count(*) FROM activity_session JOIN activity ON activity.id = activity_id
                WHERE audience = 'pupils' AND state = 'held'
                  AND (starts_at AT TIME ZONE 'Asia/Shanghai')::date = '2026-07-15'
            """)
        )
    assert (classes or 0) >= 3


async def test_seeding_again_changes_nothing_whatever_the_seed_and_the_year(engine: AsyncEngine) -> None:
    await empty(engine)
    await seed(engine, number=1)
    first = await rows(engine)
    for number, year in ((1, 2026), (2, 2026), (1, 2029)):
        assert await seed(engine, number=number, now=NOW.replace(year=year)) == SeedReport(0, 0, 0, 0, 0)
    assert await rows(engine) == first


async def test_the_same_seed_draws_the_same_town_and_another_seed_another(engine: AsyncEngine) -> None:
    drawn: list[list[str]] = []
    for number in (7, 7, 8):
        await empty(engine)
        await seed(engine, number=number)
        drawn.append(await rows(engine))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


async def test_what_is_missing_is_added(engine: AsyncEngine) -> None:
    await empty(engine)
    await seed(engine, number=1)
    first = await rows(engine)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM activity_session"))
        await connection.execute(text("DELETE FROM activity"))
        await connection.execute(text("DELETE FROM station WHERE kind = 'service_point'"))
    report = await seed(engine, number=1)
    assert (report.units, report.stations, report.points, report.activities) == (0, 0, 90, 117)
    assert await rows(engine) == first


def test_the_release_is_the_same_for_the_same_opening() -> None:
    bodies = [demonstration_release_request([STATION], NOW) for _ in range(2)]
    assert bodies[0] == bodies[1]
