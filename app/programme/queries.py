"""Statements of activities and sessions; one function, one round trip."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import func, insert, select
from sqlalchemy.dialects.postgresql import insert as insert_or_skip
from sqlalchemy.ext.asyncio import AsyncSession

from app.programme.models import Activity, ActivitySession


class ActivityFacts(NamedTuple):
    """What a session takes over from its activity."""

    station_id: UUID
    title: str


class ActivityCounts(NamedTuple):
    """An activity and its sessions by state."""

    activity: Activity
    first_starts_at: datetime | None
    last_ends_at: datetime | None
    scheduled: int
    held: int
    cancelled: int


async def activity_facts(db: AsyncSession, *, activity_ids: Iterable[UUID]) -> dict[UUID, ActivityFacts]:
    """Return those of the activities that exist."""
    statement = select(Activity.id, Activity.station_id, Activity.title).where(Activity.id.in_(list(activity_ids)))
    return {row.id: ActivityFacts(row.station_id, row.title) for row in await db.execute(statement)}


async def add_activities(db: AsyncSession, *, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert activities."""
    await db.execute(insert(Activity), list(rows))


async def add_sessions(db: AsyncSession, *, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert sessions."""
    await db.execute(insert(ActivitySession), list(rows))


async def add_missing_activities(db: AsyncSession, *, rows: Sequence[Mapping[str, object]]) -> set[UUID]:
    """Insert the activities whose ids are not there yet; return their ids."""
    statement = insert_or_skip(Activity).values(list(rows)).on_conflict_do_nothing(index_elements=[Activity.id])
    return set((await db.scalars(statement.returning(Activity.id))).all())


async def session_texts(db: AsyncSession, *, pool_ids: Sequence[UUID]) -> list[tuple[UUID, str, str]]:
    """Return the pool, room and summary of each session that stands in front of one of the pools."""
    statement = (
        select(ActivitySession.pool_id, ActivitySession.room, Activity.summary)
        .join_from(ActivitySession, Activity)
        .where(ActivitySession.pool_id.in_(pool_ids))
    )
    rows = (await db.execute(statement)).all()
    return [(pool_id, room, summary) for pool_id, room, summary in rows if pool_id is not None]


async def list_activities(
    db: AsyncSession, *, station_id: UUID | None, audience: str | None, after_id: UUID | None, limit: int
) -> list[ActivityCounts]:
    """Return up to `limit` activities by id, those after `after_id`, with their sessions counted."""
    page = select(Activity.id).order_by(Activity.id).limit(limit)
    if station_id is not None:
        page = page.where(Activity.station_id == station_id)
    if audience is not None:
        page = page.where(Activity.audience == audience)
    if after_id is not None:
        page = page.where(Activity.id > after_id)
    of_state = func.count(ActivitySession.id).filter
    statement = (
        select(
            Activity,
            func.min(ActivitySession.starts_at),
            func.max(ActivitySession.ends_at),
            of_state(ActivitySession.state == "scheduled"),
            of_state(ActivitySession.state == "held"),
            of_state(ActivitySession.state == "cancelled"),
        )
        .join_from(Activity, ActivitySession, isouter=True)
        .where(Activity.id.in_(page.scalar_subquery()))
        .group_by(Activity.id)
        .order_by(Activity.id)
    )
    return [ActivityCounts(*row) for row in await db.execute(statement)]
