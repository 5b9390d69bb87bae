"""Bodies of activities, and of a release that is made with its sessions."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, Strict, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from app.booking.releases.policy import AGE_YEARS_MAX, PLACES_PER_POOL_MAX, POOLS_PER_RELEASE_MAX
from app.booking.releases.schemas import AccountLimit, Capacity, PersonLimit
from app.core.schemas import AwareInstant, LongText, RequestModel, ResponseModel, Title, TownInstant

Audience = Literal["pupils", "elderly", "families", "everyone"]
AgeYears = Annotated[int, Strict(), Field(ge=0, le=AGE_YEARS_MAX)]
WaitlistLimit = Annotated[int, Strict(), Field(ge=0, le=PLACES_PER_POOL_MAX)]
Room = Annotated[LongText, StringConstraints(max_length=80)]


class SessionCreation(RequestModel):
    """One session of a new release: a date of an activity that is there already, or of a new one.

    Sessions of one request with the same station, title, summary and audience become one activity with many dates.
    """

    station_id: UUID
    activity_id: UUID | None = None
    title: Title | None = Field(default=None, validate_default=True)
    summary: LongText = ""
    audience: Audience = "everyone"
    starts_at: AwareInstant
    ends_at: AwareInstant
    room: Room = ""
    capacity: Capacity
    age_min: AgeYears | None = None
    age_max: AgeYears | None = None
    waitlist_limit: WaitlistLimit = 0
    resident_unit_id: UUID | None = None

    @field_validator("title")
    @classmethod
    def _names_one_activity(cls, title: str | None, info: ValidationInfo) -> str | None:
        if "activity_id" in info.data and (title is None) == (info.data["activity_id"] is None):
            if title is None:
                raise PydanticCustomError("missing", "A title, or the activity_id of an activity that has one")
            raise PydanticCustomError("not_allowed", "Either activity_id or title")
        return title


class ReleaseCreation(RequestModel):
    """A whole release with its sessions.

    It closes when its last session starts, at the latest. As long as it is open, an earlier session can still be
    claimed, even one that has begun.
    """

    title: Title
    mode: Literal["grab"] = "grab"
    opens_at: AwareInstant
    closes_at: AwareInstant
    person_limit: PersonLimit
    account_limit: AccountLimit
    rules: LongText = ""
    sessions: Annotated[list[SessionCreation], Field(min_length=1, max_length=POOLS_PER_RELEASE_MAX)]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "title": "暑期课程（第一批）",
                    "mode": "grab",
                    "opens_at": "2027-07-01T19:00:00+08:00",
                    "closes_at": "2027-07-03T19:00:00+08:00",
                    "person_limit": 2,
                    "account_limit": 4,
                    "rules": "每名儿童最多报两门课；开课前两小时可退。",
                    "sessions": [
                        {
                            "station_id": "0197a3c2-5b1e-7c40-9a52-0d6f1f0b7f11",
                            "title": "少儿书法",
                            "summary": "毛笔入门，材料自备。",
                            "starts_at": "2027-07-10T09:00:00+08:00",
                            "ends_at": "2027-07-10T10:30:00+08:00",
                            "room": "201",
                            "capacity": 18,
                            "age_min": 6,
                            "age_max": 12,
                            "waitlist_limit": 5,
                            "resident_unit_id": None,
                        }
                    ],
                }
            ]
        }
    )


class ActivityShown(ResponseModel):
    """An activity and its sessions, counted by their state. Only held ones count in the statistics."""

    id: UUID
    station_id: UUID
    title: str
    summary: str
    audience: Audience
    first_starts_at: TownInstant | None
    last_ends_at: TownInstant | None
    sessions_scheduled: int
    sessions_held: int
    sessions_cancelled: int


class ActivityPage(ResponseModel):
    """Some activities and the cursor of those that follow."""

    items: list[ActivityShown]
    next: str | None
