"""Bodies of units and stations."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, Strict, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from app.core.schemas import LongText, RequestModel, ResponseModel, Title

StationKind = Literal["service_station", "service_point"]
UnitKind = Literal["village", "residential_area"]
HostKind = Literal["village", "residential_area", "new_sector_org", "enterprise"]

Name = Annotated[Title, StringConstraints(max_length=80)]
# An address may be unknown yet: the empty text is one.
Address = Annotated[LongText, StringConstraints(max_length=200)]
Longitude = Annotated[float, Strict(), Field(ge=-180, le=180)]
Latitude = Annotated[float, Strict(), Field(ge=-90, le=90)]


class UnitCreation(RequestModel):
    """A village or a residential area."""

    kind: UnitKind
    name: Name


class StationChange(RequestModel):
    """What may change of a station. Its kind and its parent are what it is, and stay."""

    name: Name
    host_kind: HostKind
    unit_id: UUID | None = None
    address: Address = ""
    longitude_deg: Longitude | None = None
    latitude_deg: Latitude | None = Field(default=None, validate_default=True)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "示范服务站01",
                    "host_kind": "village",
                    "unit_id": None,
                    "address": "示范镇示范路1号",
                    "longitude_deg": 121.1,
                    "latitude_deg": 31.1,
                }
            ]
        }
    )

    @field_validator("latitude_deg")
    @classmethod
    def _position_is_whole(cls, latitude_deg: float | None, info: ValidationInfo) -> float | None:
        if "longitude_deg" in info.data and (info.data["longitude_deg"] is None) != (latitude_deg is None):
            raise PydanticCustomError("half_a_position", "Give longitude_deg and latitude_deg, or neither")
        return latitude_deg


class StationCreation(StationChange):
    """A new service station, or a service point and the service station that it belongs to."""

    kind: StationKind
    parent_id: UUID | None = Field(default=None, validate_default=True)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "service_station",
                    "name": "示范服务站01",
                    "parent_id": None,
                    "host_kind": "village",
                    "unit_id": None,
                    "address": "示范镇示范路1号",
                }
            ]
        }
    )

    @field_validator("parent_id")
    @classmethod
    def _point_has_a_parent(cls, parent_id: UUID | None, info: ValidationInfo) -> UUID | None:
        kind = info.data.get("kind")
        if kind == "service_point" and parent_id is None:
            raise PydanticCustomError("parent_missing", "A service point belongs to a service station")
        if kind == "service_station" and parent_id is not None:
            raise PydanticCustomError("parent_not_allowed", "A service station belongs to no other station")
        return parent_id


class UnitShown(ResponseModel):
    """A unit (村居)."""

    id: UUID
    kind: UnitKind
    name: str


class StationShown(ResponseModel):
    """A service station or a service point."""

    id: UUID
    kind: StationKind
    name: str
    parent_id: UUID | None
    host_kind: HostKind
    unit_id: UUID | None
    address: str
    longitude_deg: float | None
    latitude_deg: float | None


class UnitPage(ResponseModel):
    """Some units, by name, and the cursor of those that follow."""

    items: list[UnitShown]
    next: str | None


class StationPage(ResponseModel):
    """Some stations, by name, and the cursor of those that follow."""

    items: list[StationShown]
    next: str | None
