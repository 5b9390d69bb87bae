"""Rules of activities and sessions. A session says which pool stands behind it; booking does the rest."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.booking.releases.service import (
    PoolDetails,
    PoolSpec,
    ReleaseSpec,
    create_release,
    require_staff_at,
    tell_details,
)
from app.core.ids import new_id
from app.core.problems import FieldError, ValidationFailed
from app.programme import queries
from app.programme.queries import ActivityCounts, ActivityFacts
from app.programme.schemas import ReleaseCreation, SessionCreation

__all__ = ["POOL_KIND", "create_release_with_sessions", "list_activities", "session_details"]

# The kind of the pools that stand behind sessions.
POOL_KIND: Final = "session"


class _ActivityKey(NamedTuple):
    """What makes two sessions of one request dates of the same new activity."""

    station_id: UUID
    title: str
    summary: str
    audience: str


async def create_release_with_sessions(
    db: AsyncSession, creation: ReleaseCreation, *, account_id: UUID, now: datetime
) -> UUID:
    """Make a draft release with its sessions, all of it or nothing; return its id.

    For staff of every station in it, and operators. Raises `Forbidden`, and `ValidationFailed` naming each wrong field.
    """
    sessions = creation.sessions
    await require_staff_at(db, account_id, {session.station_id for session in sessions})
    activities = await _existing_activities(db, sessions)
    spec = ReleaseSpec(
        title=creation.title,
        mode=creation.mode,
        opens_at=creation.opens_at,
        closes_at=creation.closes_at,
        person_limit=creation.person_limit,
        account_limit=creation.account_limit,
        rules=creation.rules,
        pools=tuple(_pool_spec(session, activities) for session in sessions),
    )
    made = await create_release(db, spec, created_by=account_id, now=now, pools_field="sessions")
    activity_ids = await _activities_of(db, sessions)
    await queries.add_sessions(
        db,
        rows=[
            {
                "id": new_id(),
                "activity_id": activity_id,
                "pool_id": pool_id,
                "starts_at": session.starts_at,
                "ends_at": session.ends_at,
                "room": session.room,
            }
            for session, activity_id, pool_id in zip(sessions, activity_ids, made.pool_ids, strict=True)
        ],
    )
    return made.release_id


async def list_activities(
    db: AsyncSession, *, station_id: UUID | None, audience: str | None, after_id: UUID | None, limit: int
) -> list[ActivityCounts]:
    """Return up to `limit` activities, in the order in which they were made, with their sessions counted."""
    return await queries.list_activities(db, station_id=station_id, audience=audience, after_id=after_id, limit=limit)


async def session_details(db: AsyncSession, pool_ids: Sequence[UUID]) -> dict[UUID, PoolDetails]:
    """Return room and summary of the sessions that stand in front of these pools."""
    rows = await queries.session_texts(db, pool_ids=pool_ids)
    return {pool_id: PoolDetails(room, summary) for pool_id, room, summary in rows}


tell_details(POOL_KIND, session_details)


async def _existing_activities(db: AsyncSession, sessions: Sequence[SessionCreation]) -> dict[UUID, ActivityFacts]:
    """Return the activities that the sessions name. Raises `ValidationFailed` for another station's, or none."""
    wanted = {session.activity_id for session in sessions if session.activity_id is not None}
    if not wanted:
        return {}
    found = await queries.activity_facts(db, activity_ids=wanted)
    errors = [
        FieldError(f"sessions[{index}].activity_id", "unknown_activity")
        for index, session in enumerate(sessions)
        if session.activity_id is not None
        and (session.activity_id not in found or found[session.activity_id].station_id != session.station_id)
    ]
    if errors:
        raise ValidationFailed(errors=errors)
    return found


def _pool_spec(session: SessionCreation, activities: Mapping[UUID, ActivityFacts]) -> PoolSpec:
    title = session.title if session.activity_id is None else activities[session.activity_id].title
    assert title is not None  # noqa: S101 - the body has one or the other, or would have been refused
    return PoolSpec(
        kind=POOL_KIND,
        title=title,
        station_id=session.station_id,
        starts_at=session.starts_at,
        ends_at=session.ends_at,
        capacity=session.capacity,
        age_min=session.age_min,
        age_max=session.age_max,
        resident_unit_id=session.resident_unit_id,
        waitlist_limit=session.waitlist_limit,
    )


async def _activities_of(db: AsyncSession, sessions: Sequence[SessionCreation]) -> list[UUID]:
    """Return each session's activity, adding those that are new."""
    new: dict[_ActivityKey, UUID] = {}
    activity_ids: list[UUID] = []
    for session in sessions:
        if session.activity_id is not None:
            activity_ids.append(session.activity_id)
            continue
        key = _ActivityKey(session.station_id, session.title or "", session.summary, session.audience)
        activity_ids.append(new.setdefault(key, new_id()))
    if new:
        await queries.add_activities(db, rows=[{"id": id_, **key._asdict()} for key, id_ in new.items()])
    return activity_ids
