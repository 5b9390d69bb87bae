"""Statements of units and stations; one function, one round trip."""

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_skip
from sqlalchemy.ext.asyncio import AsyncSession

from app.stations.models import Station, Unit


async def list_units(db: AsyncSession, *, after_id: UUID | None, limit: int) -> Sequence[Unit]:
    """Return up to `limit` units by name, those after the one with that id."""
    statement = select(Unit).order_by(Unit.name).limit(limit)
    if after_id is not None:
        statement = statement.where(Unit.name > select(Unit.name).where(Unit.id == after_id).scalar_subquery())
    return (await db.scalars(statement)).all()


async def list_stations(
    db: AsyncSession, *, kind: str | None, unit_id: UUID | None, after_id: UUID | None, limit: int
) -> Sequence[Station]:
    """Return up to `limit` stations that are not closed, by name, those after the one with that id."""
    statement = select(Station).where(Station.closed_at.is_(None)).order_by(Station.name).limit(limit)
    if kind is not None:
        statement = statement.where(Station.kind == kind)
    if unit_id is not None:
        statement = statement.where(Station.unit_id == unit_id)
    if after_id is not None:
        statement = statement.where(Station.name > select(Station.name).where(Station.id == after_id).scalar_subquery())
    return (await db.scalars(statement)).all()


async def find_station(db: AsyncSession, *, station_id: UUID) -> Station | None:
    """Return one station, closed ones too: what happened there is still looked up."""
    return await db.scalar(select(Station).where(Station.id == station_id))


async def kind_of_station(db: AsyncSession, *, station_id: UUID) -> str | None:
    """Return whether it is a service station or a service point."""
    return await db.scalar(select(Station.kind).where(Station.id == station_id))


async def known_stations(db: AsyncSession, *, station_ids: Iterable[UUID]) -> set[UUID]:
    """Return those of the ids that belong to stations which are not closed."""
    statement = select(Station.id).where(Station.id.in_(list(station_ids)), Station.closed_at.is_(None))
    return set((await db.scalars(statement)).all())


async def known_units(db: AsyncSession, *, unit_ids: Iterable[UUID]) -> set[UUID]:
    """Return those of the ids that belong to units."""
    return set((await db.scalars(select(Unit.id).where(Unit.id.in_(list(unit_ids))))).all())


async def add_missing_units(db: AsyncSession, *, rows: Sequence[Mapping[str, object]]) -> int:
    """Insert the units whose ids are not there yet; return how many."""
    statement = insert_or_skip(Unit).values(list(rows)).on_conflict_do_nothing(index_elements=[Unit.id])
    return len((await db.scalars(statement.returning(Unit.id))).all())


async def add_missing_stations(db: AsyncSession, *, rows: Sequence[Mapping[str, object]]) -> int:
    """Insert the stations whose ids are not there yet; return how many."""
    statement = insert_or_skip(Station).values(list(rows)).on_conflict_do_nothing(index_elements=[Station.id])
    return len((await db.scalars(statement.returning(Station.id))).all())


async def add_unit(db: AsyncSession, *, kind: str, name: str) -> Unit:
    """Insert one unit."""
    return (await db.scalars(insert(Unit).values(kind=kind, name=name).returning(Unit))).one()


async def add_station(db: AsyncSession, *, values: Mapping[str, object]) -> Station:
    """Insert one station."""
    return (await db.scalars(insert(Station).values(**values).returning(Station))).one()


async def change_station(db: AsyncSession, *, station_id: UUID, values: Mapping[str, object]) -> Station | None:
    """Replace what may change of one station; nothing where there is none."""
    statement = (
        update(Station)
        .where(Station.id == station_id)
        .values(**values, updated_at=func.now())
        .returning(Station)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    return (await db.scalars(statement)).one_or_none()
