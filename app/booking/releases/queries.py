"""Statements that read and change releases and their pools; one function, one round trip."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    exists,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.booking.models import Pool, Release, ReleaseChange
from app.booking.releases.policy import Phase, PoolSpec, ReleaseSpec
from app.booking.rows import release_lock
from app.core.ids import new_id
from app.stations.models import Station

# Releases read in one statement; however many there are, whoever tends them holds no longer list in memory.
RELEASES_PAGE: Final = 200
# A release that has closed may still be cancelled from until its last session has begun, and a day covers the rest.
SWEPT_AFTER_CLOSING: Final = timedelta(days=1)


class PoolRecord(NamedTuple):
    """A pool, and where it is."""

    pool: Pool
    station: Station | None

    @property
    def starts_at(self) -> datetime:
        """Return the begin of its time span."""
        return cast("datetime", self.pool.during.lower)

    @property
    def ends_at(self) -> datetime:
        """Return the end of its time span."""
        return cast("datetime", self.pool.during.upper)


class ReleaseRecord(NamedTuple):
    """A release and its pools in their order."""

    release: Release
    pools: list[PoolRecord]


class ReleaseFacts(NamedTuple):
    """What decides who may do something with a release. A pool without a station counts as None."""

    state: str
    station_ids: frozenset[UUID | None]


class PoolFacts(NamedTuple):
    """What decides who may change a pool, and under which release's lock."""

    release_id: UUID
    release_state: str
    station_id: UUID | None


class Counts(NamedTuple):
    """Places of one pool, and of all the pools of its release, as PostgreSQL has them."""

    places: int
    held: int
    places_of_release: int


class AuditCounts(NamedTuple):
    """What PostgreSQL knows of a release's places, each number counted by itself.

    `online_held` and `online_free` are those of the lane that the gate gives out; the others are of every lane.
    """

    places: int
    held: int
    waiting: int
    free: int
    double_held: int
    over_capacity: int
    online_held: int
    online_free: int


# Ends with the transaction. The gate's commits hold the same key shared, its rebuild holds it alone.
_LOCK_ALONE: Final = text(f"SELECT {release_lock(':release', alone=True)}")

_ADD_PLACES: Final = text("""
INSERT INTO place (pool_id, place_no)
SELECT wanted.pool_id, place_no
FROM unnest(CAST(:pools AS uuid[]), CAST(:capacities AS integer[])) AS wanted (pool_id, capacity),
     generate_series(1, wanted.capacity) AS place_no
""")

_RAISE_CAPACITY: Final = text("""
INSERT INTO place (pool_id, place_no)
SELECT :pool, highest.place_no + added.number
FROM (SELECT coalesce(max(place_no), 0) AS place_no FROM place WHERE pool_id = :pool) AS highest,
     generate_series(1, CAST(:more AS integer)) AS added (number)
""")

# The number of a place that is gone goes out of the cancelled bookings that once had it; the bookings stay.
_LOWER_CAPACITY: Final = text("""
WITH free AS (
    SELECT place.place_no FROM place
    WHERE place.pool_id = :pool
      AND NOT EXISTS (SELECT FROM booking
                      WHERE booking.pool_id = place.pool_id AND booking.place_no = place.place_no
                        AND booking.status = 'confirmed')
    ORDER BY place.place_no DESC
    LIMIT :fewer
), forgotten AS (
    UPDATE booking SET place_no = NULL
    FROM free WHERE booking.pool_id = :pool AND booking.place_no = free.place_no
)
DELETE FROM place USING free WHERE place.pool_id = :pool AND place.place_no = free.place_no
""")

_COUNTS: Final = text("""
SELECT (SELECT count(*) FROM place WHERE pool_id = :pool) AS places,
       (SELECT count(*) FROM booking WHERE pool_id = :pool AND status = 'confirmed') AS held,
       (SELECT count(*) FROM place JOIN pool ON pool.id = place.pool_id
        WHERE pool.release_id = (SELECT release_id FROM pool WHERE id = :pool)) AS places_of_release
""")

_AUDIT: Final = text("""
WITH holders AS (
    SELECT booking.pool_id, booking.place_no, count(*) AS holders
    FROM booking JOIN pool ON pool.id = booking.pool_id
    WHERE pool.release_id = :release AND booking.status = 'confirmed'
    GROUP BY booking.pool_id, booking.place_no
), places AS (
    SELECT place.pool_id, count(*) AS places, count(*) FILTER (WHERE holders.holders IS NULL) AS free,
           count(*) FILTER (WHERE place.lane = 'online' AND holders.holders IS NULL) AS online_free,
           sum(holders.holders) FILTER (WHERE place.lane = 'online') AS online_held
    FROM place JOIN pool ON pool.id = place.pool_id
    LEFT JOIN holders ON holders.pool_id = place.pool_id AND holders.place_no = place.place_no
    WHERE pool.release_id = :release
    GROUP BY place.pool_id
), held AS (
    SELECT pool_id, sum(holders) AS held, sum(holders - 1) AS double_held FROM holders GROUP BY pool_id
), waiting AS (
    SELECT booking.pool_id, count(*) AS waiting
    FROM booking JOIN pool ON pool.id = booking.pool_id
    WHERE pool.release_id = :release AND booking.status = 'waitlisted'
    GROUP BY booking.pool_id
)
SELECT coalesce(sum(places.places), 0)::bigint AS places,
       coalesce(sum(held.held), 0)::bigint AS held,
       coalesce(sum(waiting.waiting), 0)::bigint AS waiting,
       coalesce(sum(places.free), 0)::bigint AS free,
       coalesce(sum(held.double_held), 0)::bigint AS double_held,
       coalesce(sum(greatest(coalesce(held.held, 0) - coalesce(places.places, 0), 0)), 0)::bigint AS over_capacity,
       coalesce(sum(places.online_held), 0)::bigint AS online_held,
       coalesce(sum(places.online_free), 0)::bigint AS online_free
FROM pool
LEFT JOIN places ON places.pool_id = pool.id
LEFT JOIN held ON held.pool_id = pool.id
LEFT JOIN waiting ON waiting.pool_id = pool.id
WHERE pool.release_id = :release
""")


async def lock_release_exclusively(db: AsyncSession, *, release_id: UUID) -> None:
    """Keep every commit of the gate out of this release until the transaction ends; waits for those under way."""
    await db.execute(_LOCK_ALONE, {"release": release_id})


async def add_release(db: AsyncSession, spec: ReleaseSpec, *, created_by: UUID) -> UUID:
    """Insert a draft without its pools; return its id."""
    release_id = new_id()
    await db.execute(
        insert(Release).values(
            id=release_id,
            title=spec.title,
            mode=spec.mode,
            opens_at=spec.opens_at,
            closes_at=spec.closes_at,
            person_limit=spec.person_limit,
            account_limit=spec.account_limit,
            rules=spec.rules,
            created_by=created_by,
        )
    )
    return release_id


async def add_pools(db: AsyncSession, specs: Sequence[PoolSpec], *, release_id: UUID) -> list[UUID]:
    """Insert the pools of a new release, without places; return their ids in the same order."""
    rows: list[dict[str, object]] = [
        {
            "id": new_id(),
            "release_id": release_id,
            "ordinal": ordinal,
            "kind": spec.kind,
            "title": spec.title,
            "station_id": spec.station_id,
            "during": Range(spec.starts_at, spec.ends_at, bounds="[)"),
            "age_min": spec.age_min,
            "age_max": spec.age_max,
            "resident_unit_id": spec.resident_unit_id,
            "waitlist_limit": spec.waitlist_limit,
        }
        for ordinal, spec in enumerate(specs)
    ]
    await db.execute(insert(Pool), rows)
    return [cast("UUID", row["id"]) for row in rows]


async def add_places(db: AsyncSession, *, pool_ids: Sequence[UUID], capacities: Sequence[int]) -> None:
    """Insert the places of new pools, numbered from 1."""
    await db.execute(_ADD_PLACES, {"pools": list(pool_ids), "capacities": list(capacities)})


async def release_facts(db: AsyncSession, *, release_id: UUID) -> ReleaseFacts | None:
    """Return the state of a release and the stations of its pools."""
    stations = select(func.array_agg(Pool.station_id.distinct())).where(Pool.release_id == Release.id)
    row = (
        await db.execute(select(Release.state, stations.scalar_subquery()).where(Release.id == release_id))
    ).one_or_none()
    if row is None:
        return None
    state, station_ids = cast("tuple[str, list[UUID | None] | None]", tuple(row))
    return ReleaseFacts(state, frozenset(station_ids or ()))


async def pool_facts(db: AsyncSession, *, pool_id: UUID) -> PoolFacts | None:
    """Return which release and station a pool belongs to."""
    statement = (
        select(Pool.release_id, Release.state, Pool.station_id).join_from(Pool, Release).where(Pool.id == pool_id)
    )
    row = (await db.execute(statement)).one_or_none()
    return None if row is None else PoolFacts(*row)


async def read_release(db: AsyncSession, *, release_id: UUID) -> ReleaseRecord | None:
    """Return a release in whatever state, with its pools."""
    records = _records((await db.execute(_with_pools(Release.id == release_id).order_by(Pool.ordinal))).all())
    return records[0] if records else None


async def read_pool(db: AsyncSession, *, pool_id: UUID) -> PoolRecord:
    """Return one pool that is known to be there."""
    release = select(Pool.release_id).where(Pool.id == pool_id).scalar_subquery()
    _, pool, station = (await db.execute(_with_pools(Release.id == release, Pool.id == pool_id))).one()
    return PoolRecord(pool, station)


async def add_change(
    db: AsyncSession,
    *,
    release_id: UUID,
    pool_id: UUID | None,
    changed_by: UUID,
    reason: str,
    changes: Mapping[str, tuple[object, object]],
) -> None:
    """Note what somebody changed and why: for each field its value before and after, as JSON has them."""
    await db.execute(
        insert(ReleaseChange).values(
            id=new_id(),
            release_id=release_id,
            pool_id=pool_id,
            changed_by=changed_by,
            reason=reason,
            changes={field: list(values) for field, values in changes.items()},
        )
    )


async def list_changes(
    db: AsyncSession, *, release_id: UUID, before_id: UUID | None, limit: int
) -> Sequence[ReleaseChange]:
    """Return up to `limit` changes of a release and its pools, newest first, from behind `before_id` on."""
    statement = select(ReleaseChange).where(ReleaseChange.release_id == release_id)
    if before_id is not None:
        statement = statement.where(ReleaseChange.id < before_id)
    return (await db.scalars(statement.order_by(ReleaseChange.id.desc()).limit(limit))).all()


async def list_releases(
    db: AsyncSession, *, phase: Phase | None, now: datetime, after: tuple[datetime, UUID] | None, limit: int
) -> list[ReleaseRecord]:
    """Return up to `limit` published releases with their pools, those after the key `(opens_at, id)`.

    What is to come is sorted by its opening, the next first; what has been, and everything, the latest first.
    """
    key = tuple_(Release.opens_at, Release.id)
    page = select(Release.id).where(Release.state == "published").limit(limit)
    match phase:
        case Phase.UPCOMING:
            page = page.where(Release.opens_at > now)
        case Phase.OPEN:
            page = page.where(Release.opens_at <= now, Release.closes_at > now)
        case Phase.CLOSED:
            page = page.where(Release.closes_at <= now)
        case None:
            pass
    latest_first = phase in {Phase.CLOSED, None}
    if after is not None:
        bound = tuple_(literal(after[0], Release.opens_at.type), literal(after[1], Release.id.type))
        page = page.where(key < bound if latest_first else key > bound)
    order = (Release.opens_at.desc(), Release.id.desc()) if latest_first else (Release.opens_at.asc(), Release.id.asc())
    page = page.order_by(*order)
    statement = _with_pools(Release.id.in_(page.scalar_subquery())).order_by(*order, Pool.ordinal)
    return _records((await db.execute(statement)).all())


async def publish(db: AsyncSession, *, release_id: UUID, rules_version: str, now: datetime) -> None:
    """Turn a draft into a published release."""
    await db.execute(
        update(Release)
        .where(Release.id == release_id, Release.state == "draft")
        .values(state="published", rules_version=rules_version, published_at=now, updated_at=func.now())
        .execution_options(synchronize_session=False)
    )


async def change_release(db: AsyncSession, *, release_id: UUID, values: Mapping[str, object]) -> None:
    """Change a release and raise its epoch.

    What was admitted under the old epoch can no longer be committed, so the change holds from this commit on, whether
    or not the rebuild that follows succeeds.
    """
    await db.execute(
        update(Release)
        .where(Release.id == release_id)
        .values(**values, epoch=Release.epoch + 1, updated_at=func.now())
        .execution_options(synchronize_session=False)
    )


async def count_places(db: AsyncSession, *, pool_id: UUID) -> Counts:
    """Return how many places a pool has, how many of them are held, and how many places its release has."""
    return Counts(*(await db.execute(_COUNTS, {"pool": pool_id})).one())


async def raise_capacity(db: AsyncSession, *, pool_id: UUID, more: int) -> None:
    """Add places after the highest number."""
    await db.execute(_RAISE_CAPACITY, {"pool": pool_id, "more": more})


async def lower_capacity(db: AsyncSession, *, pool_id: UUID, fewer: int) -> None:
    """Delete free places, from the highest number down. The caller holds the release's lock and has counted."""
    await db.execute(_LOWER_CAPACITY, {"pool": pool_id, "fewer": fewer})


async def count_for_audit(db: AsyncSession, *, release_id: UUID) -> AuditCounts:
    """Count a release's places and bookings, all on one snapshot."""
    return AuditCounts(*(await db.execute(_AUDIT, {"release": release_id})).one())


def _with_pools(*conditions: ColumnElement[bool]) -> Select[Release, Pool, Station]:
    return (
        select(Release, Pool, Station)
        .join_from(Release, Pool, Pool.release_id == Release.id, isouter=True)
        .join(Station, Station.id == Pool.station_id, isouter=True)
        .where(*conditions)
        # Earlier statements of this transaction may have changed what the session remembers.
        .execution_options(populate_existing=True)
    )


def _records(rows: Sequence[Row[Release, Pool, Station]]) -> list[ReleaseRecord]:
    records: list[ReleaseRecord] = []
    for release, pool, station in rows:
        if not records or records[-1].release.id != release.id:
            records.append(ReleaseRecord(release, []))
        # An outer join: a release whose pools are yet to be made has a row without one.
        if cast("Pool | None", pool) is not None:
            records[-1].pools.append(PoolRecord(pool, station))
    return records


async def releases_in_use(connection: AsyncConnection, *, now: datetime, after: UUID | None) -> list[UUID]:
    """Return a page of the published releases that claims can still change, by id.

    Those that open later are among them: the first sweep builds their state before the second at which it matters.
    """
    statement = select(Release.id).where(_in_use(now)).order_by(Release.id).limit(RELEASES_PAGE)
    if after is not None:
        statement = statement.where(Release.id > after)
    return list((await connection.scalars(statement)).all())


async def releases_over(connection: AsyncConnection, release_ids: Collection[UUID], *, now: datetime) -> list[UUID]:
    """Return those of the releases for which nothing is left to be done. One that this database lacks is not ours."""
    if not release_ids:
        return []
    statement = select(Release.id).where(Release.id.in_(release_ids), not_(_in_use(now))).order_by(Release.id)
    return list((await connection.scalars(statement)).all())


def _in_use(now: datetime) -> ColumnElement[bool]:
    return and_(
        Release.state == "published",
        or_(
            Release.closes_at > now - SWEPT_AFTER_CLOSING,
            exists().where(Pool.release_id == Release.id, func.lower(Pool.during) > now),
        ),
    )
