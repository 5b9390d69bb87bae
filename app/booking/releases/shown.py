"""Turns releases and pools as they are stored into what the API shows."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.booking.releases.details import PoolDetails, details_of
from app.booking.releases.queries import PoolRecord, ReleaseRecord
from app.booking.releases.schemas import PoolShown, PoolStation, ReleaseShown

_NO_DETAILS = PoolDetails()


async def releases_shown(db: AsyncSession, records: Sequence[ReleaseRecord]) -> list[ReleaseShown]:
    """Return releases as they are shown, with what their pools are about: one round trip for each kind of pool."""
    details = await details_of(db, (pool.pool for record in records for pool in record.pools))
    return [_release(record, details) for record in records]


async def release_shown(db: AsyncSession, record: ReleaseRecord) -> ReleaseShown:
    """Return one release as it is shown."""
    return (await releases_shown(db, [record]))[0]


async def pool_shown(db: AsyncSession, record: PoolRecord) -> PoolShown:
    """Return one pool as it is shown."""
    return _pool(record, await details_of(db, [record.pool]))


def _release(record: ReleaseRecord, details: Mapping[UUID, PoolDetails]) -> ReleaseShown:
    release = record.release
    return ReleaseShown.model_validate(
        {
            "id": release.id,
            "title": release.title,
            "mode": release.mode,
            "state": release.state,
            "opens_at": release.opens_at,
            "closes_at": release.closes_at,
            "person_limit": release.person_limit,
            "account_limit": release.account_limit,
            "rules": release.rules,
            "rules_version": release.rules_version,
            "pools": [_pool(pool, details) for pool in record.pools],
        }
    )


def _pool(record: PoolRecord, details: Mapping[UUID, PoolDetails]) -> PoolShown:
    pool = record.pool
    about = details.get(pool.id, _NO_DETAILS)
    return PoolShown.model_validate(
        {
            "id": pool.id,
            "kind": pool.kind,
            "title": pool.title,
            "station": PoolStation.model_validate(record.station) if record.station is not None else None,
            "starts_at": record.starts_at,
            "ends_at": record.ends_at,
            "capacity": record.pool.capacity,
            "age_min": pool.age_min,
            "age_max": pool.age_max,
            "waitlist_limit": pool.waitlist_limit,
            "resident_unit_id": pool.resident_unit_id,
            "state": pool.state,
            "room": about.room,
            "summary": about.summary,
        }
    )
