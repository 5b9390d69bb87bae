"""Bodies of releases and pools."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, Strict

from app.booking.releases.policy import ACCOUNT_LIMIT_MAX, PERSON_LIMIT_MAX, PLACES_PER_POOL_MAX
from app.core.schemas import AwareInstant, LongText, Reason, RequestModel, ResponseModel, Title, TownInstant

PersonLimit = Annotated[int, Strict(), Field(ge=1, le=PERSON_LIMIT_MAX)]
AccountLimit = Annotated[int, Strict(), Field(ge=1, le=ACCOUNT_LIMIT_MAX)]
Capacity = Annotated[int, Strict(), Field(ge=1, le=PLACES_PER_POOL_MAX)]


class ReleaseChange(RequestModel):
    """What a release shall be. Once it is published, `reason` is needed and limits and rules are frozen.

    A limit or rule that is left out stays as it is.
    """

    title: Title
    opens_at: AwareInstant
    closes_at: AwareInstant
    person_limit: PersonLimit | None = None
    account_limit: AccountLimit | None = None
    rules: LongText | None = None
    reason: Reason | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "title": "暑期课程（第一批）",
                    "opens_at": "2026-07-01T20:00:00+08:00",
                    "closes_at": "2026-07-03T20:00:00+08:00",
                    "reason": "台风停课，顺延一天",
                }
            ]
        }
    )


class CapacityChange(RequestModel):
    """How many places a pool shall have, and why."""

    capacity: Capacity
    reason: Reason

    model_config = ConfigDict(json_schema_extra={"examples": [{"capacity": 20, "reason": "换到大教室"}]})


class PoolStation(ResponseModel):
    """Where a pool's thing happens."""

    id: UUID
    name: str
    kind: Literal["service_station", "service_point"]
    address: str


class PoolShown(ResponseModel):
    """A pool of places. `room` and `summary` come from the feature in front of it and may be empty."""

    id: UUID
    kind: str
    title: str
    station: PoolStation | None
    starts_at: TownInstant
    ends_at: TownInstant
    capacity: int
    age_min: int | None
    age_max: int | None
    waitlist_limit: int
    resident_unit_id: UUID | None
    state: Literal["open", "cancelled"]
    room: str = ""
    summary: str = ""


class ReleaseShown(ResponseModel):
    """A release with its pools in their order.

    `state` says what staff did with it; whether it is open now follows from `opens_at`, `closes_at` and `GET /v1/time`.
    """

    id: UUID
    title: str
    mode: Literal["grab"]
    state: Literal["draft", "published", "cancelled"]
    opens_at: TownInstant
    closes_at: TownInstant
    person_limit: int
    account_limit: int
    rules: str
    rules_version: str | None
    pools: list[PoolShown]


class ReleasePage(ResponseModel):
    """Some releases and the cursor of those that follow."""

    items: list[ReleaseShown]
    next: str | None


class ReleaseChangeShown(ResponseModel):
    """What somebody of the staff changed, and why. `changes` has for each field its value before and after."""

    id: UUID
    pool: UUID | None = Field(description="Null where the release itself was changed.")
    changed_by: UUID
    changed_at: TownInstant
    reason: str
    changes: dict[str, tuple[str | int | None, str | int | None]]


class ReleaseChangePage(ResponseModel):
    """Some changes and the cursor of those that follow."""

    items: list[ReleaseChangeShown]
    next: str | None


class GateCounts(ResponseModel):
    """What the gate believes of the places that it gives out: those of the lane `online`."""

    free: int
    held: int
    pending: int
    waiting: int


class ReleaseAudit(ResponseModel):
    """A release's places, counted in PostgreSQL, beside what the gate believes.

    `double_held` counts live bookings beyond the first of one place, `over_capacity` those beyond a pool's places; both
    are 0 or a constraint is broken. `online_held` and `online_free` leave out places given out on the spot.
    `consistent` says that nothing is broken, that every place is either held or free, and that the gate, where it has
    state, agrees about its own lane: it can be false for a moment while claims are under way.
    """

    release: UUID
    places: int
    held: int
    waiting: int
    free: int
    double_held: int
    over_capacity: int
    online_held: int
    online_free: int
    gate: GateCounts | None
    consistent: bool
