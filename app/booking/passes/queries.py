"""Statements of the passes: one function, one round trip."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.booking.models import Pool, Release
from app.booking.passes.policy import PoolConditions


@dataclass(frozen=True, slots=True)
class ReleaseConditions:
    """A published release and what each of its pools demands, by ordinal."""

    opens_at: datetime
    pools: tuple[PoolConditions, ...]


async def release_conditions(db: AsyncSession, *, release_id: UUID) -> ReleaseConditions | None:
    """Return the conditions of a published release, or None."""
    rows = await db.execute(
        select(
            Release.opens_at,
            Pool.id,
            Pool.ordinal,
            func.lower(Pool.during).label("starts_at"),
            Pool.age_min,
            Pool.age_max,
            Pool.resident_unit_id,
        )
        .join(Pool, Pool.release_id == Release.id)
        .where(Release.id == release_id, Release.state == "published")
        .order_by(Pool.ordinal)
    )
    pools: list[PoolConditions] = []
    opens_at: datetime | None = None
    for row in rows:
        opens_at = row.opens_at
        pools.append(PoolConditions(row.id, row.ordinal, row.starts_at, row.age_min, row.age_max, row.resident_unit_id))
    return None if opens_at is None else ReleaseConditions(opens_at, tuple(pools))
