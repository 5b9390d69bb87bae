"""Rules of units and stations: the door of this feature."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.policy import Role
from app.accounts.service import require_role
from app.core.problems import NotFound
from app.stations import queries
from app.stations.errors import parent_is_a_point, refusal_of, unknown_parent
from app.stations.models import Station, Unit

__all__ = [
    "Added",
    "add_missing",
    "change_station",
    "create_station",
    "create_unit",
    "known_stations",
    "known_units",
    "list_stations",
    "list_units",
    "station",
]


class Added(NamedTuple):
    """How many rows were new."""

    units: int
    stations: int
    points: int


async def add_missing(
    db: AsyncSession,
    *,
    units: Sequence[Mapping[str, object]],
    stations: Sequence[Mapping[str, object]],
    points: Sequence[Mapping[str, object]],
) -> Added:
    """Add units, service stations and service points whose ids the caller has chosen; those that are there stay.

    Nobody's request leads here: seeding and imports do. Raises `StationNameTaken` or `UnitNameTaken` where something
    else has one of the names.
    """
    try:
        return Added(
            await queries.add_missing_units(db, rows=units),
            await queries.add_missing_stations(db, rows=stations),
            await queries.add_missing_stations(db, rows=points),
        )
    except IntegrityError as error:
        raise refusal_of(error) from None


async def list_units(db: AsyncSession, *, after_id: UUID | None, limit: int) -> Sequence[Unit]:
    """Return up to `limit` units by name, those after the unit `after_id`."""
    return await queries.list_units(db, after_id=after_id, limit=limit)


async def list_stations(
    db: AsyncSession, *, kind: str | None, unit_id: UUID | None, after_id: UUID | None, limit: int
) -> Sequence[Station]:
    """Return up to `limit` stations that are not closed, by name, those after the station `after_id`."""
    return await queries.list_stations(db, kind=kind, unit_id=unit_id, after_id=after_id, limit=limit)


async def station(db: AsyncSession, station_id: UUID) -> Station:
    """Return one station. Raises `NotFound`."""
    found = await queries.find_station(db, station_id=station_id)
    if found is None:
        raise NotFound
    return found


async def known_stations(db: AsyncSession, station_ids: Iterable[UUID]) -> set[UUID]:
    """Return those of the ids that belong to stations which are not closed."""
    return await queries.known_stations(db, station_ids=station_ids)


async def known_units(db: AsyncSession, unit_ids: Iterable[UUID]) -> set[UUID]:
    """Return those of the ids that belong to units."""
    return await queries.known_units(db, unit_ids=unit_ids)


async def create_unit(db: AsyncSession, *, account_id: UUID, kind: str, name: str) -> Unit:
    """Add a unit. For operators; raises `Forbidden` and `UnitNameTaken`."""
    await require_role(db, account_id, Role.OPERATOR)
    try:
        return await queries.add_unit(db, kind=kind, name=name)
    except IntegrityError as error:
        raise refusal_of(error) from None


async def create_station(db: AsyncSession, *, account_id: UUID, values: Mapping[str, object]) -> Station:
    """Add a station, `values` being those of `StationCreation`.

    For operators; raises `Forbidden`, `StationNameTaken`, and `ValidationFailed` that names `parent_id` or `unit_id`.
    """
    await require_role(db, account_id, Role.OPERATOR)
    parent_id = values["parent_id"]
    if isinstance(parent_id, UUID):
        # No constraint can say this one: it concerns another row. A station's kind never changes, so no lock either.
        match await queries.kind_of_station(db, station_id=parent_id):
            case None:
                raise unknown_parent()
            case "service_station":
                pass
            case _:
                raise parent_is_a_point()
    try:
        return await queries.add_station(db, values=values)
    except IntegrityError as error:
        raise refusal_of(error) from None


async def change_station(
    db: AsyncSession, *, account_id: UUID, station_id: UUID, values: Mapping[str, object]
) -> Station:
    """Replace what may change of a station, `values` being those of `StationChange`.

    For its staff and operators; raises `Forbidden`, `NotFound`, `StationNameTaken`, and `ValidationFailed` that names
    `unit_id`.
    """
    await require_role(db, account_id, (Role.STAFF, Role.OPERATOR), station_id=station_id)
    try:
        changed = await queries.change_station(db, station_id=station_id, values=values)
    except IntegrityError as error:
        raise refusal_of(error) from None
    if changed is None:
        raise NotFound
    return changed
