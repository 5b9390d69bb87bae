"""Tables of units and stations. A unit (村居) receives checklists, a station receives people: not the same."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, Double, ForeignKey, Index, String, func
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base
from app.core.ids import new_id

_NOW = func.now()
_INSTANT = DateTime(timezone=True)


class Unit(Base):
    """A village or a residential area."""

    __tablename__ = "unit"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(String(24))
    name: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)

    __table_args__ = (
        CheckConstraint("kind IN ('village', 'residential_area')", name="kind_known"),
        Index("uq_unit_name", "name", unique=True),
    )


class Station(Base):
    """A service station, or a service point that belongs to one, and who hosts it."""

    __tablename__ = "station"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(String(24))
    name: Mapped[str] = mapped_column(String(80))
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("station.id"))
    host_kind: Mapped[str] = mapped_column(String(24))
    unit_id: Mapped[UUID | None] = mapped_column(ForeignKey("unit.id"))
    address: Mapped[str] = mapped_column(String(200), server_default="")
    longitude_deg: Mapped[float | None] = mapped_column(Double)
    latitude_deg: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    closed_at: Mapped[datetime | None] = mapped_column(_INSTANT)

    __table_args__ = (
        CheckConstraint("kind IN ('service_station', 'service_point')", name="kind_known"),
        CheckConstraint(
            "host_kind IN ('village', 'residential_area', 'new_sector_org', 'enterprise')", name="host_kind_known"
        ),
        CheckConstraint("(kind = 'service_point') = (parent_id IS NOT NULL)", name="point_has_parent"),
        CheckConstraint("longitude_deg BETWEEN -180 AND 180", name="longitude_range"),
        CheckConstraint("latitude_deg BETWEEN -90 AND 90", name="latitude_range"),
        Index("uq_station_name", "name", unique=True),
        Index("ix_station_parent", "parent_id"),
        Index("ix_station_unit", "unit_id"),
    )
