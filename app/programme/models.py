"""Tables of activities and sessions."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, Index, String, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base
from app.core.ids import new_id

_NOW = func.now()
_INSTANT = DateTime(timezone=True)


class Activity(Base):
    """Something a station offers: one afternoon or a six-week camp, one row; its sessions are its dates."""

    __tablename__ = "activity"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    station_id: Mapped[UUID] = mapped_column(ForeignKey("station.id"))
    title: Mapped[str] = mapped_column(String(120))
    summary: Mapped[str] = mapped_column(Text, server_default="")
    audience: Mapped[str] = mapped_column(String(24))
    created_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)

    __table_args__ = (
        CheckConstraint("audience IN ('pupils', 'elderly', 'families', 'everyone')", name="audience_known"),
        Index("ix_activity_station", "station_id"),
    )


class ActivitySession(Base):
    """One date of an activity. Who may come and how many is the business of the pool behind it.

    `pool_id` is null where no place was ever claimed through a release: an open house, or a date of the past.
    """

    __tablename__ = "activity_session"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    activity_id: Mapped[UUID] = mapped_column(ForeignKey("activity.id"))
    pool_id: Mapped[UUID | None] = mapped_column(ForeignKey("pool.id"))
    starts_at: Mapped[datetime] = mapped_column(_INSTANT)
    ends_at: Mapped[datetime] = mapped_column(_INSTANT)
    room: Mapped[str] = mapped_column(String(80), server_default="")
    state: Mapped[str] = mapped_column(String(16), server_default="scheduled")

    __table_args__ = (
        CheckConstraint("ends_at > starts_at", name="ends_after_start"),
        CheckConstraint("state IN ('scheduled', 'held', 'cancelled')", name="state_known"),
        Index("uq_activity_session_pool", "pool_id", unique=True),
        Index("ix_activity_session_activity", "activity_id"),
        Index("ix_activity_session_starts_at", "starts_at"),
    )
