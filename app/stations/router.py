"""Paths of units and stations."""

from typing import Annotated
from uuid import UUID

from fastapi import Path, Query, Request, Response, status

from app.core.auth import Caller
from app.core.etags import NOT_MODIFIED_RESPONSE, tagged_response
from app.core.openapi import problems
from app.core.pages import PAGE_LIMIT, Cursor, Limit, bad_cursor, page_of, read_cursor, write_cursor
from app.core.problems import Forbidden, NotFound, ValidationFailed
from app.core.web.routing import ApiRouter
from app.core.web.transactions import Read, Tx
from app.stations import service
from app.stations.errors import StationNameTaken, UnitNameTaken
from app.stations.schemas import (
    StationChange,
    StationCreation,
    StationKind,
    StationPage,
    StationShown,
    UnitCreation,
    UnitPage,
    UnitShown,
)

router = ApiRouter(tags=["stations"])

StationId = Annotated[UUID, Path(description="A station's id.")]


@router.get("/v1/units", summary="List the units (村居)", response_model=UnitPage, responses=NOT_MODIFIED_RESPONSE)
async def list_units(request: Request, db: Read, cursor: Cursor = None, limit: Limit = PAGE_LIMIT) -> Response:
    """Return the villages and residential areas, by name. Answers 304 to a matching `If-None-Match`."""
    after_id = _after_id(cursor)
    found = await service.list_units(db, after_id=after_id, limit=limit + 1)
    units, following = page_of(found, limit=limit, cursor_of=lambda unit: write_cursor(str(unit.id)))
    page = UnitPage(items=[UnitShown.model_validate(unit) for unit in units], next=following)
    return tagged_response(request, page.model_dump_json().encode())


@router.post(
    "/v1/units",
    summary="Add a unit",
    status_code=status.HTTP_201_CREATED,
    responses=problems(Forbidden, UnitNameTaken),
)
async def create_unit(body: UnitCreation, caller: Caller, db: Tx) -> UnitShown:
    """Add a village or residential area. For operators."""
    unit = await service.create_unit(db, account_id=caller.account_id, kind=body.kind, name=body.name)
    return UnitShown.model_validate(unit)


@router.get(
    "/v1/stations", summary="List stations and points", response_model=StationPage, responses=NOT_MODIFIED_RESPONSE
)
async def list_stations(
    request: Request,
    db: Read,
    kind: Annotated[StationKind | None, Query(description="Only service stations, or only service points.")] = None,
    unit_id: Annotated[UUID | None, Query(description="Only those in this unit.")] = None,
    cursor: Cursor = None,
    limit: Limit = PAGE_LIMIT,
) -> Response:
    """Return service stations and service points, by name. Answers 304 to a matching `If-None-Match`."""
    after_id = _after_id(cursor)
    found = await service.list_stations(db, kind=kind, unit_id=unit_id, after_id=after_id, limit=limit + 1)
    stations, following = page_of(found, limit=limit, cursor_of=lambda station: write_cursor(str(station.id)))
    page = StationPage(items=[StationShown.model_validate(station) for station in stations], next=following)
    return tagged_response(request, page.model_dump_json().encode())


@router.get(
    "/v1/stations/{station_id}",
    summary="Read one station",
    response_model=StationShown,
    responses={**NOT_MODIFIED_RESPONSE, **problems(NotFound)},
)
async def read_station(request: Request, station_id: StationId, db: Read) -> Response:
    """Return one service station or service point. Answers 304 to a matching `If-None-Match`."""
    station = StationShown.model_validate(await service.station(db, station_id))
    return tagged_response(request, station.model_dump_json().encode())


@router.post(
    "/v1/stations",
    summary="Add a station or point",
    status_code=status.HTTP_201_CREATED,
    responses=problems(Forbidden, StationNameTaken, ValidationFailed),
)
async def create_station(body: StationCreation, caller: Caller, db: Tx) -> StationShown:
    """Add a service station, or a service point of one. For operators."""
    station = await service.create_station(db, account_id=caller.account_id, values=body.model_dump())
    return StationShown.model_validate(station)


@router.put(
    "/v1/stations/{station_id}",
    summary="Change a station",
    responses=problems(Forbidden, NotFound, StationNameTaken, ValidationFailed),
)
async def change_station(station_id: StationId, body: StationChange, caller: Caller, db: Tx) -> StationShown:
    """Replace what may change of a station; what is left out becomes empty. For its staff, and operators."""
    station = await service.change_station(
        db, account_id=caller.account_id, station_id=station_id, values=body.model_dump()
    )
    return StationShown.model_validate(station)


def _after_id(cursor: str | None) -> UUID | None:
    key = read_cursor(cursor, parts=1)
    try:
        return UUID(key[0]) if key else None
    except ValueError:
        raise bad_cursor() from None
