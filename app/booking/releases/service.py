"""Rules of making, publishing and changing releases: the door for the features that stand in front of pools."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Final, NamedTuple, Protocol
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.policy import Role, holds
from app.accounts.service import require_role, require_role_at, roles_of
from app.booking.models import ReleaseChange
from app.booking.releases import queries
from app.booking.releases.details import PoolDetails, details_of, tell_details
from app.booking.releases.errors import CapacityBelowHeld, ReleaseFrozen, ReleaseNotPublishable
from app.booking.releases.policy import (
    Phase,
    PoolSpec,
    PublishedPool,
    ReleaseChanges,
    ReleaseSpec,
    opening_errors,
    places_errors,
    pool_errors,
    rules_version,
    to_the_millisecond,
    total_errors,
)
from app.booking.releases.queries import AuditCounts, PoolRecord, ReleaseRecord
from app.core.clock import Clock, iso
from app.core.db import after_commit
from app.core.problems import FieldError, Forbidden, NotFound, ValidationFailed
from app.stations.service import known_stations, known_units

__all__ = [
    "Audit",
    "CreatedRelease",
    "GateDoor",
    "PoolDetails",
    "PoolSpec",
    "ReleaseChanges",
    "ReleaseSpec",
    "audit_release",
    "change_release",
    "create_release",
    "details_of",
    "draft_for_staff",
    "list_changes",
    "list_releases",
    "publish_release",
    "read_release",
    "require_staff_at",
    "set_capacity",
    "tell_details",
]

log = structlog.stdlib.get_logger(__name__)

_STAFF: Final = (Role.STAFF, Role.OPERATOR)
# What may still change between publishing and opening: nobody loses a place by it, and a reason is told.
_MOVABLE: Final = frozenset({"title", "opens_at", "closes_at"})


class GateDoor(Protocol):
    """What staff's work needs of the gate."""

    async def suspend(self, release_id: UUID) -> None:
        """Let nobody be judged by the state of a release until it is built anew. Raises `GateUnreachable`."""
        ...

    async def rebuild(self, release_id: UUID) -> None:
        """Build the gate's state of a published release anew from PostgreSQL."""
        ...

    async def counts(self, release_id: UUID) -> Mapping[str, int] | None:
        """Return the gate's own totals, or None where it has no state."""
        ...


class CreatedRelease(NamedTuple):
    """A new draft and its pools, in the order in which they were described."""

    release_id: UUID
    pool_ids: list[UUID]


class Audit(NamedTuple):
    """Both sides' counts, and whether they fit together."""

    counts: AuditCounts
    gate: Mapping[str, int] | None
    consistent: bool


async def require_staff_at(db: AsyncSession, account_id: UUID, station_ids: Collection[UUID | None]) -> None:
    """Raise `Forbidden` unless the account works at every one of the stations, or is an operator.

    What belongs to no station is the operators' alone.
    """
    stations = {station_id for station_id in station_ids if station_id is not None}
    if len(stations) < len(set(station_ids)) or not stations:
        await require_role(db, account_id, Role.OPERATOR)
    else:
        await require_role_at(db, account_id, _STAFF, station_ids=stations)


async def create_release(
    db: AsyncSession, spec: ReleaseSpec, *, created_by: UUID, now: datetime, pools_field: str = "pools"
) -> CreatedRelease:
    """Make a draft with its pools and places. Whether `created_by` may is the caller's to have asked.

    Raises `ValidationFailed` naming each wrong field; those of pool 3 as `{pools_field}[3].…`.
    """
    spec = replace(spec, opens_at=to_the_millisecond(spec.opens_at), closes_at=to_the_millisecond(spec.closes_at))
    errors = [
        *opening_errors(spec.opens_at, spec.closes_at, [pool.starts_at for pool in spec.pools], now=now),
        *pool_errors(spec.pools, opens_at=spec.opens_at, pools_field=pools_field),
        *total_errors(spec.pools, pools_field=pools_field),
        *await _reference_errors(db, spec.pools, pools_field=pools_field),
    ]
    if errors:
        raise ValidationFailed(errors=errors)
    release_id = await queries.add_release(db, spec, created_by=created_by)
    pool_ids = await queries.add_pools(db, spec.pools, release_id=release_id)
    await queries.add_places(db, pool_ids=pool_ids, capacities=[pool.capacity for pool in spec.pools])
    log.info("release_created", release=str(release_id), pools=len(pool_ids), by=str(created_by))
    return CreatedRelease(release_id, pool_ids)


async def _reference_errors(db: AsyncSession, pools: Collection[PoolSpec], *, pools_field: str) -> list[FieldError]:
    """Name the pools whose station or unit does not exist: the foreign keys would not say which pool it was."""
    stations = {pool.station_id for pool in pools if pool.station_id is not None}
    units = {pool.resident_unit_id for pool in pools if pool.resident_unit_id is not None}
    unknown_stations = stations - await known_stations(db, stations) if stations else set[UUID]()
    unknown_units = units - await known_units(db, units) if units else set[UUID]()
    errors: list[FieldError] = []
    for index, pool in enumerate(pools):
        at = f"{pools_field}[{index}]"
        if pool.station_id in unknown_stations:
            errors.append(FieldError(f"{at}.station_id", "unknown_station"))
        if pool.resident_unit_id in unknown_units:
            errors.append(FieldError(f"{at}.resident_unit_id", "unknown_unit"))
    return errors


async def read_release(db: AsyncSession, release_id: UUID) -> ReleaseRecord | None:
    """Return a release in whatever state, or None."""
    return await queries.read_release(db, release_id=release_id)


async def list_releases(
    db: AsyncSession, *, phase: Phase | None, now: datetime, after: tuple[datetime, UUID] | None, limit: int
) -> list[ReleaseRecord]:
    """Return up to `limit` published releases; see `queries.list_releases` for their order."""
    return await queries.list_releases(db, phase=phase, now=now, after=after, limit=limit)


async def draft_for_staff(db: AsyncSession, release_id: UUID, *, account_id: UUID | None) -> ReleaseRecord:
    """Return a release that the public cannot see. Raises `NotFound`, also for those who may not know of it."""
    record = await queries.read_release(db, release_id=release_id)
    if record is None or account_id is None:
        raise NotFound
    await _require_staff_of_any(db, account_id, {pool.pool.station_id for pool in record.pools}, hide=True)
    return record


async def publish_release(
    db: AsyncSession, release_id: UUID, *, account_id: UUID, now: datetime, gate: GateDoor
) -> ReleaseRecord:
    """Publish a draft: from now on its rules stand under a version. Publishing again changes nothing.

    Raises `NotFound`, `Forbidden` and `ReleaseNotPublishable`.
    """
    record = await _release_to_change(db, release_id, account_id=account_id)
    release = record.release
    if release.state == "published":
        return record
    if release.state != "draft" or release.closes_at <= now:
        raise ReleaseNotPublishable
    version = rules_version(
        mode=release.mode,
        rules=release.rules,
        person_limit=release.person_limit,
        account_limit=release.account_limit,
        pools=[_published(pool) for pool in record.pools],
    )
    await queries.publish(db, release_id=release_id, rules_version=version, now=now)
    _rebuild_after_commit(db, release_id, gate)
    log.info("release_published", release=str(release_id), rules_version=version, by=str(account_id))
    return await _present(db, release_id)


async def change_release(
    db: AsyncSession,
    release_id: UUID,
    wanted: ReleaseChanges,
    *,
    reason: str | None,
    account_id: UUID,
    clock: Clock,
    gate: GateDoor,
) -> ReleaseRecord:
    """Change a draft in everything, or a published release before its opening in title and times, with a reason.

    Raises `NotFound`, `Forbidden`, `ReleaseFrozen`, and `ValidationFailed` naming the field.
    """
    record = await _release_to_change(db, release_id, account_id=account_id)
    # Only now: while this waited for the lock, the release may have opened.
    now = clock.now()
    release = record.release
    wanted = replace(
        wanted, opens_at=to_the_millisecond(wanted.opens_at), closes_at=to_the_millisecond(wanted.closes_at)
    )
    changes = {
        name: value for name, value in asdict(wanted).items() if value is not None and value != getattr(release, name)
    }
    if release.state != "draft":
        if release.state != "published" or release.opens_at <= now or not changes.keys() <= _MOVABLE:
            raise ReleaseFrozen
        if reason is None:
            raise ValidationFailed(
                "A published release is changed only with a reason.",
                "已发布的放号，修改时须说明原因。",
                errors=[FieldError("reason", "missing")],
            )
    starts = [pool.starts_at for pool in record.pools]
    errors = list(opening_errors(wanted.opens_at, wanted.closes_at, starts, now=now))
    if release.state == "published" and wanted.opens_at <= now:
        errors.append(FieldError("opens_at", "in_the_past"))
    if any(starts_at <= wanted.opens_at for starts_at in starts):
        errors.append(FieldError("opens_at", "not_before_sessions"))
    if errors:
        raise ValidationFailed(errors=errors)
    if not changes:
        return record
    before = {name: getattr(release, name) for name in changes}
    await queries.change_release(db, release_id=release_id, values=changes)
    if reason is not None:
        told = {name: (_as_json(before[name]), _as_json(value)) for name, value in changes.items()}
        await queries.add_change(
            db, release_id=release_id, pool_id=None, changed_by=account_id, reason=reason, changes=told
        )
    if release.state == "published":
        await _make_anew(db, release_id, gate)
    log.info("release_changed", release=str(release_id), fields=sorted(changes), by=str(account_id))
    return await _present(db, release_id)


async def set_capacity(
    db: AsyncSession, pool_id: UUID, *, capacity: int, reason: str, account_id: UUID, gate: GateDoor
) -> PoolRecord:
    """Give a pool `capacity` places: new ones come after its highest number, free ones go from the highest down.

    The rebuild that follows hands new places to those who wait. Sending it again repeats that rebuild.
    Raises `NotFound`, `Forbidden`, `CapacityBelowHeld` with `held`, and `ValidationFailed` where the release would have
    more places than one may.
    """
    facts = await queries.pool_facts(db, pool_id=pool_id)
    if facts is None:
        raise NotFound
    await _require_staff_or_hide(db, account_id, {facts.station_id}, hide=facts.release_state == "draft")
    await queries.lock_release_exclusively(db, release_id=facts.release_id)
    counts = await queries.count_places(db, pool_id=pool_id)
    if capacity < counts.held:
        raise CapacityBelowHeld(
            f"{counts.held} places are held; the capacity cannot be {capacity}.",
            f"已有 {counts.held} 个名额被占用，不能减为 {capacity}。",
            extra={"held": counts.held, "capacity": counts.places},
        )
    if capacity > counts.places:
        if errors := list(places_errors(counts.places_of_release - counts.places + capacity, field="capacity")):
            raise ValidationFailed(errors=errors)
        await queries.raise_capacity(db, pool_id=pool_id, more=capacity - counts.places)
    elif capacity < counts.places:
        await queries.lower_capacity(db, pool_id=pool_id, fewer=counts.places - capacity)
    if capacity != counts.places:
        await queries.add_change(
            db,
            release_id=facts.release_id,
            pool_id=pool_id,
            changed_by=account_id,
            reason=reason,
            changes={"capacity": (counts.places, capacity)},
        )
    # Raises the epoch: a claim that was admitted to a place which is gone now is judged anew.
    await queries.change_release(db, release_id=facts.release_id, values={})
    if facts.release_state == "published":
        await _make_anew(db, facts.release_id, gate)
    log.info(
        "capacity_changed",
        pool=str(pool_id),
        capacity_before=counts.places,
        capacity=capacity,
        by=str(account_id),
    )
    return await queries.read_pool(db, pool_id=pool_id)


async def audit_release(db: AsyncSession, release_id: UUID, *, account_id: UUID, gate: GateDoor) -> Audit:
    """Count a release's places in PostgreSQL and ask the gate for its own. For staff of a station in it, and operators.

    Raises `NotFound` and `Forbidden`.
    """
    facts = await queries.release_facts(db, release_id=release_id)
    if facts is None:
        raise NotFound
    await _require_staff_of_any(db, account_id, facts.station_ids, hide=facts.state == "draft")
    gate_counts = None if facts.state == "draft" else await gate.counts(release_id)
    counts = await queries.count_for_audit(db, release_id=release_id)
    sound = counts.double_held == 0 and counts.over_capacity == 0 and counts.held + counts.free == counts.places
    agrees = gate_counts is None or (
        gate_counts["pending"] == 0
        and gate_counts["free"] == counts.online_free
        and gate_counts["held"] == counts.online_held
        and gate_counts["waiting"] == counts.waiting
    )
    return Audit(counts, gate_counts, sound and agrees)


async def list_changes(
    db: AsyncSession, release_id: UUID, *, account_id: UUID, before_id: UUID | None, limit: int
) -> Sequence[ReleaseChange]:
    """Return what staff changed and why, newest first. For staff of a station in the release, and operators.

    Raises `NotFound` and `Forbidden`.
    """
    facts = await queries.release_facts(db, release_id=release_id)
    if facts is None:
        raise NotFound
    await _require_staff_of_any(db, account_id, facts.station_ids, hide=facts.state == "draft")
    return await queries.list_changes(db, release_id=release_id, before_id=before_id, limit=limit)


async def _release_to_change(db: AsyncSession, release_id: UUID, *, account_id: UUID) -> ReleaseRecord:
    """Return the release as it is under its lock, once the account is known to be allowed to change it."""
    facts = await queries.release_facts(db, release_id=release_id)
    if facts is None:
        raise NotFound
    await _require_staff_or_hide(db, account_id, facts.station_ids, hide=facts.state == "draft")
    await queries.lock_release_exclusively(db, release_id=release_id)
    return await _present(db, release_id)


async def _present(db: AsyncSession, release_id: UUID) -> ReleaseRecord:
    record = await queries.read_release(db, release_id=release_id)
    if record is None:
        raise NotFound
    return record


async def _require_staff_or_hide(
    db: AsyncSession, account_id: UUID, station_ids: Collection[UUID | None], *, hide: bool
) -> None:
    """Raise `Forbidden` for whoever may not, or `NotFound` where they may not even know that it exists."""
    try:
        await require_staff_at(db, account_id, station_ids)
    except Forbidden:
        if hide:
            raise NotFound from None
        raise


async def _require_staff_of_any(
    db: AsyncSession, account_id: UUID, station_ids: Collection[UUID | None], *, hide: bool
) -> None:
    """Raise unless the account works at one of the stations: enough to read totals, not to change what is others'."""
    grants = await roles_of(db, account_id)
    if not any(holds(grants, _STAFF, station_id=station_id) for station_id in (*station_ids, None)):
        raise NotFound if hide else Forbidden


def _published(record: PoolRecord) -> PublishedPool:
    pool = record.pool
    return PublishedPool(
        id=pool.id,
        kind=pool.kind,
        station_id=pool.station_id,
        starts_at=record.starts_at,
        ends_at=record.ends_at,
        age_min=pool.age_min,
        age_max=pool.age_max,
        resident_unit_id=pool.resident_unit_id,
        waitlist_limit=pool.waitlist_limit,
    )


def _as_json(value: object) -> object:
    return iso(value) if isinstance(value, datetime) else value


async def _make_anew(db: AsyncSession, release_id: UUID, gate: GateDoor) -> None:
    """Have the gate's state made anew after the commit; from now until then nobody hears what will not be true."""
    await gate.suspend(release_id)
    _rebuild_after_commit(db, release_id, gate)


def _rebuild_after_commit(db: AsyncSession, release_id: UUID, gate: GateDoor) -> None:
    async def rebuild() -> None:
        try:
            await gate.rebuild(release_id)
        except Exception:
            log.warning("gate_rebuild_failed", release=str(release_id), exc_info=True)

    after_commit(db, rebuild)
