"""The demonstration town: generated, the same for the same seed, with names that nobody could take for real ones.

29 units, 29 service stations and 90 service points; at the first station half a year's programme of 108 held and 9
cancelled activities with a peak in summer; and the description of one release of 14 sessions with 300 places.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import TOWN_ZONE
from app.core.ids import derived_id
from app.programme import queries
from app.stations import service as stations

VILLAGES: Final = 18
UNITS: Final = 29
STATIONS: Final = 29
POINTS: Final = 90
HELD_ACTIVITIES: Final = 108
CANCELLED_ACTIVITIES: Final = 9
RELEASE_CAPACITIES: Final = (35, 35, 35, 18, 18, 18, 18, 18, 18, 18, 18, 17, 17, 17)

# Ids follow from what a thing is, so that seeding twice adds nothing; this is only the time part they all share.
_MADE_AT_MS: Final = 1_767_225_600_000
_HOSTS: Final = ("village", "village", "residential_area", "residential_area", "new_sector_org", "enterprise")
_CENTRE_LONGITUDE_DEG: Final = 121.1
_CENTRE_LATITUDE_DEG: Final = 31.0

# Held and cancelled activities by month, from March to August.
_HELD_BY_MONTH: Final = {3: 13, 4: 14, 5: 14, 6: 15, 7: 27, 8: 25}
_CANCELLED_BY_MONTH: Final = {3: 1, 4: 1, 5: 1, 6: 1, 7: 3, 8: 2}
_LAST_MONTH: Final = 8
# Pupils 34 %, elderly 28 %, the rest spread: of the 108 held and the 9 cancelled, 40 and 33 of 117.
_HELD_FOR: Final = {"pupils": 37, "elderly": 30, "families": 21, "everyone": 20}
_CANCELLED_FOR: Final = {"pupils": 3, "elderly": 3, "families": 2, "everyone": 1}
_TITLES: Final[Mapping[str, tuple[str, ...]]] = {
    "pupils": ("少儿书法", "少儿陶艺", "机器人入门", "小小讲解员", "暑期编程", "少儿合唱", "自然观察"),
    "elderly": ("智能手机课", "八段锦", "戏曲欣赏", "健康讲座", "手工编织", "合唱队", "防诈骗课"),
    "families": ("亲子烘焙", "亲子阅读", "亲子种植", "家庭急救"),
    "everyone": ("露天电影", "便民集市", "法律咨询日", "邻里茶话会"),
}
_ROOMS: Final = ("101", "102", "201", "202", "多功能厅")
_STARTS_AT_HOURS: Final = (9, 13, 15, 18)
_SESSION_LENGTH: Final = timedelta(minutes=90)
_ANNOUNCED_BEFORE: Final = timedelta(days=21)
# Every so many of the pupils' activities is a course of several weeks, one of whose dates fell through: it is one
# activity all the same, and only its held sessions count.
_COURSE_EVERY: Final = 9
_COURSE_WEEKS: Final = 4
# Three classes of 35 on one day of summer.
_BUSY_DAY: Final = (7, 15)
_BUSY_DAY_CLASSES: Final = 3

# Day after the opening and hour of each session of the release: the three large classes fill one day, and two of the
# others overlap by half, so that a child who wants both meets the clash.
_RELEASE_SLOTS: Final = (
    (3, 9.0),
    (3, 13.0),
    (3, 15.0),
    (4, 9.0),
    (4, 9.75),
    (4, 13.0),
    (5, 9.0),
    (5, 13.0),
    (6, 9.0),
    (6, 13.0),
    (7, 9.0),
    (8, 9.0),
    (8, 13.0),
    (9, 9.0),
)
# Ages as a parent reads them, both included; every session takes children from 7 to 11.
_RELEASE_AGES: Final = ((6, 12), (6, 14), (5, 12), (7, 14))
_RELEASE_STAYS_OPEN: Final = timedelta(days=2)

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class SeedReport:
    """What seeding has added; all zero where the town stood already."""

    units: int
    stations: int
    points: int
    activities: int
    sessions: int


class _Programme(NamedTuple):
    activities: list[Row]
    sessions: list[Row]


async def seed_demonstration(db: AsyncSession, *, seed: int, now: datetime) -> SeedReport:
    """Add what is missing of the town, in five statements. The programme lies in the last March to August before `now`.

    What is there already stays as it is, also where another seed would have drawn it differently.
    """
    rng = random.Random(f"{seed}/town")  # noqa: S311 - a demonstration is drawn, nothing secret depends on it
    points = list(_points(rng))
    added = await stations.add_missing(db, units=list(_units()), stations=list(_stations(rng)), points=points)
    programme = _programme(rng, year=_last_summer(now))
    new = await queries.add_missing_activities(db, rows=programme.activities)
    sessions = [session for session in programme.sessions if session["activity_id"] in new]
    if sessions:
        await queries.add_sessions(db, rows=sessions)
    return SeedReport(added.units, added.stations, added.points, len(new), len(sessions))


def demonstration_station_id(number: int) -> UUID:
    """Return the id of the town's service station 1 to 29."""
    return _id("station", number)


def demonstration_release_request(
    station_ids: Sequence[UUID | str],
    opens_at: datetime,
    *,
    title: str = "暑期课程（第一批）",
    waitlist_limit: int = 5,
) -> dict[str, object]:
    """Return the body of `POST /v1/releases` for 14 sessions with 300 places, spread over the stations.

    The sessions begin three days after the opening. Every second one keeps a waiting list of `waitlist_limit`.
    """
    opening_day = opens_at.astimezone(TOWN_ZONE).replace(hour=0, minute=0, second=0, microsecond=0)
    sessions: list[dict[str, object]] = []
    for number, (capacity, (days, hour)) in enumerate(zip(RELEASE_CAPACITIES, _RELEASE_SLOTS, strict=True)):
        starts_at = opening_day + timedelta(days=days, hours=hour)
        age_min, age_max = _RELEASE_AGES[number % len(_RELEASE_AGES)]
        name = _TITLES["pupils"][number % len(_TITLES["pupils"])]
        sessions.append(
            {
                "station_id": str(station_ids[number % len(station_ids)]),
                "title": f"{name}{number // len(_TITLES['pupils']) + 1}班",
                "summary": f"名额 {capacity} 人，材料由站点提供。",
                "audience": "pupils",
                "starts_at": starts_at.isoformat(),
                "ends_at": (starts_at + _SESSION_LENGTH).isoformat(),
                "room": _ROOMS[number % len(_ROOMS)],
                "capacity": capacity,
                "age_min": age_min,
                "age_max": age_max,
                "waitlist_limit": waitlist_limit if number % 2 else 0,
                "resident_unit_id": None,
            }
        )
    return {
        "title": title,
        "mode": "grab",
        "opens_at": opens_at.isoformat(),
        "closes_at": (opens_at + _RELEASE_STAYS_OPEN).isoformat(),
        "person_limit": 2,
        "account_limit": 4,
        "rules": "每名儿童最多报两门课，每个账号最多四个名额；开课前两小时可退，退还不计爽约。",
        "sessions": sessions,
    }


def _id(kind: str, number: int) -> UUID:
    return derived_id(_MADE_AT_MS + number, b"demonstration", kind.encode(), str(number).encode())


def _units() -> Iterator[Row]:
    for number in range(1, UNITS + 1):
        village = number <= VILLAGES
        name = f"示范村{number:02d}" if village else f"示范社区{number - VILLAGES:02d}"
        yield {"id": _id("unit", number), "kind": "village" if village else "residential_area", "name": name}


def _place(rng: random.Random, number: int) -> Row:
    """Return what a station and a point have alike. Who hosts it and in which unit it lies are two things."""
    return {
        "host_kind": _HOSTS[number % len(_HOSTS)],
        "unit_id": _id("unit", rng.randint(1, UNITS)),
        "address": f"示范镇示范路{number}号",
        "longitude_deg": round(_CENTRE_LONGITUDE_DEG + rng.uniform(-0.06, 0.06), 5),
        "latitude_deg": round(_CENTRE_LATITUDE_DEG + rng.uniform(-0.04, 0.04), 5),
    }


def _stations(rng: random.Random) -> Iterator[Row]:
    for number in range(1, STATIONS + 1):
        yield {
            "id": demonstration_station_id(number),
            "kind": "service_station",
            "name": f"示范服务站{number:02d}",
            **_place(rng, number),
        }


def _points(rng: random.Random) -> Iterator[Row]:
    for number in range(1, POINTS + 1):
        yield {
            "id": _id("point", number),
            "kind": "service_point",
            # One point stands in a supermarket and never closes.
            "name": "示范超市服务点" if number == POINTS else f"示范服务点{number:03d}",
            "parent_id": demonstration_station_id((number - 1) % STATIONS + 1),
            **_place(rng, STATIONS + number),
        }


def _last_summer(now: datetime) -> int:
    """Return the year of the last August that is over."""
    today = now.astimezone(TOWN_ZONE)
    return today.year if today.month > _LAST_MONTH else today.year - 1


def _programme(rng: random.Random, *, year: int) -> _Programme:
    """Draw the half-year of the first station."""
    programme = _Programme([], [])
    held = _audiences(rng, _HELD_FOR)
    # The busy day's three classes are pupils' classes of July, drawn first from both.
    days = [date(year, *_BUSY_DAY)] * _BUSY_DAY_CLASSES
    by_month = {**_HELD_BY_MONTH, _BUSY_DAY[0]: _HELD_BY_MONTH[_BUSY_DAY[0]] - _BUSY_DAY_CLASSES}
    for _ in range(_BUSY_DAY_CLASSES):
        held.remove("pupils")
    audiences = ["pupils"] * _BUSY_DAY_CLASSES + held
    days += _days(rng, by_month, year)
    for number, (audience, day) in enumerate(zip(audiences, days, strict=True)):
        hour = _STARTS_AT_HOURS[number] if number < _BUSY_DAY_CLASSES else rng.choice(_STARTS_AT_HOURS)
        _add(programme, rng, audience=audience, starts_at=_at(day, hour), held=True)
    cancelled = zip(_audiences(rng, _CANCELLED_FOR), _days(rng, _CANCELLED_BY_MONTH, year), strict=True)
    for audience, day in cancelled:
        _add(programme, rng, audience=audience, starts_at=_at(day, rng.choice(_STARTS_AT_HOURS)), held=False)
    return programme


def _audiences(rng: random.Random, counts: Mapping[str, int]) -> list[str]:
    drawn = [audience for audience, count in counts.items() for _ in range(count)]
    rng.shuffle(drawn)
    return drawn


def _days(rng: random.Random, by_month: Mapping[int, int], year: int) -> list[date]:
    return [date(year, month, rng.randint(1, 28)) for month, count in by_month.items() for _ in range(count)]


def _at(day: date, hour: int) -> datetime:
    return datetime.combine(day, time(hour), TOWN_ZONE)


def _add(programme: _Programme, rng: random.Random, *, audience: str, starts_at: datetime, held: bool) -> None:
    """Add the next activity with its sessions."""
    number = len(programme.activities) + 1
    activity_id = _id("activity", number)
    is_course = held and audience == "pupils" and number % _COURSE_EVERY == 0 and starts_at.month < _LAST_MONTH
    name = _TITLES[audience][rng.randrange(len(_TITLES[audience]))]
    programme.activities.append(
        {
            "id": activity_id,
            "station_id": demonstration_station_id(1),
            "title": f"{name}（第{number}期）",
            "summary": f"{'系列课程' if is_course else '单次活动'}，示范数据。",
            "audience": audience,
            "created_at": starts_at - _ANNOUNCED_BEFORE,
        }
    )
    weeks = _COURSE_WEEKS if is_course else 1
    fell_through = rng.randrange(weeks) if is_course else None
    room = rng.choice(_ROOMS)
    for week in range(weeks):
        begins_at = starts_at + timedelta(weeks=week)
        programme.sessions.append(
            {
                "id": _id("activity_session", len(programme.sessions) + 1),
                "activity_id": activity_id,
                "starts_at": begins_at,
                "ends_at": begins_at + _SESSION_LENGTH,
                "room": room,
                "state": "held" if held and week != fell_through else "cancelled",
            }
        )
