"""Statements about decided claims: one function, one round trip."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.booking.models import Booking, Claim, Pool
from app.booking.rows import LIVE_WORDS, WAITING_POSITION, release_lock

_LOCK_RELEASE: Final = text(f"SELECT {release_lock('release_id', alone=False)} FROM claim WHERE id = :claim_id")  # noqa: S608 - our own words


@dataclass(frozen=True, slots=True)
class BookingRow:
    """One booking. `waiting_position` counts from 1 and only for those who wait."""

    id: UUID
    claim_id: UUID
    person_id: UUID
    pool_id: UUID
    status: str
    place_no: int | None
    waiting_position: int | None
    starts_at: datetime


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """One claim with its bookings, in the order in which it named the people."""

    id: UUID
    release_id: UUID
    account_id: UUID | None
    state: str
    seq: int | None
    decided_at: datetime
    bookings: tuple[BookingRow, ...]


@dataclass(frozen=True, slots=True)
class LockedClaim:
    """A claim that this transaction may change."""

    id: UUID
    release_id: UUID


def _bookings_of_claims(condition: ColumnElement[bool]) -> Select[Claim, Booking, Any, Any]:
    return (
        select(
            Claim,
            Booking,
            func.lower(Booking.during).label("starts_at"),
            literal_column(WAITING_POSITION, BigInteger()).label("waiting_position"),
        )
        .join(Booking, Booking.claim_id == Claim.id)
        .where(condition)
        .order_by(Claim.decided_at.desc(), Claim.id.desc(), Booking.position)
    )


async def _read(db: AsyncSession, statement: Select[Claim, Booking, Any, Any]) -> list[ClaimRow]:
    claims: dict[UUID, Claim] = {}
    bookings: dict[UUID, list[BookingRow]] = {}
    for claim, booking, starts_at, waiting_position in await db.execute(statement):
        claims[claim.id] = claim
        bookings.setdefault(claim.id, []).append(
            BookingRow(
                booking.id,
                claim.id,
                booking.person_id,
                booking.pool_id,
                booking.status,
                booking.place_no,
                waiting_position,
                starts_at,
            )
        )
    return [
        ClaimRow(c.id, c.release_id, c.account_id, c.state, c.seq, c.decided_at, tuple(bookings[c.id]))
        for c in claims.values()
    ]


async def claim_by_id(db: AsyncSession, *, claim_id: UUID) -> ClaimRow | None:
    """Return a decided claim, or None: void ones have no bookings and are not shown."""
    rows = await _read(db, _bookings_of_claims(Claim.id == claim_id))
    return rows[0] if rows else None


async def claims_of_account(
    db: AsyncSession, *, account_id: UUID, before: tuple[datetime, UUID] | None, limit: int
) -> list[ClaimRow]:
    """Return an account's claims, newest first, from behind `before` (decided_at, id) on."""
    newest = select(Claim.id).where(Claim.account_id == account_id)
    if before is not None:
        decided_at, claim_id = before
        newest = newest.where(
            or_(Claim.decided_at < decided_at, and_(Claim.decided_at == decided_at, Claim.id < claim_id))
        )
    newest = newest.order_by(Claim.decided_at.desc(), Claim.id.desc()).limit(limit)
    return await _read(db, _bookings_of_claims(Claim.id.in_(newest)))


async def claim_of_booking(db: AsyncSession, *, booking_id: UUID) -> UUID | None:
    """Return the claim that a booking belongs to."""
    return await db.scalar(select(Booking.claim_id).where(Booking.id == booking_id))


async def lock_claim(db: AsyncSession, *, claim_id: UUID, account_id: UUID) -> LockedClaim | None:
    """Lock a claim of this account for a change, and keep rebuilds of its release out meanwhile."""
    if (await db.execute(_LOCK_RELEASE, {"claim_id": claim_id})).first() is None:
        # Without the claim there was no release to lock. It may be committed in the next instant; whoever went on and
        # found it would change it beside a rebuild that reads it.
        return None
    # Pools before claims, and pools in one order: a hand-over holds its pool and then takes the waiter's claim, so a
    # waiter who withdraws at that moment must not hold the claim already.
    pools = (
        select(Booking.pool_id)
        .join(Claim, Claim.id == Booking.claim_id)
        .where(Claim.id == claim_id, Claim.account_id == account_id, Booking.status.in_(LIVE_WORDS))
    )
    await db.execute(select(Pool.id).where(Pool.id.in_(pools)).order_by(Pool.id).with_for_update(key_share=True))
    row = (
        await db.execute(
            select(Claim.id, Claim.release_id)
            .where(Claim.id == claim_id, Claim.account_id == account_id)
            .with_for_update(key_share=True)
        )
    ).one_or_none()
    return None if row is None else LockedClaim(row.id, row.release_id)


async def claims_to_come(db: AsyncSession, *, person_id: UUID, now: datetime) -> list[tuple[UUID, UUID]]:
    """Return the claims, and whose they are, in which a person has a live booking of a session that has not begun.

    In the order of their releases and ids: whoever locks several takes them in one order.
    """
    rows = await db.execute(
        select(Claim.id, Claim.account_id)
        .join(Booking, Booking.claim_id == Claim.id)
        .where(Booking.person_id == person_id, Booking.status.in_(LIVE_WORDS), func.lower(Booking.during) > now)
        .group_by(Claim.id)
        .order_by(Claim.release_id, Claim.id)
    )
    return [(row.id, row.account_id) for row in rows]


async def cancel_bookings(
    db: AsyncSession, *, claim_id: UUID, booking_ids: Sequence[UUID], now: datetime
) -> list[tuple[UUID, int | None]]:
    """Cancel live bookings of a claim. Returns the pool and place number (None for a waiter) of each."""
    rows = await db.execute(
        update(Booking)
        .where(Booking.claim_id == claim_id, Booking.id.in_(booking_ids), Booking.status.in_(LIVE_WORDS))
        .values(status="cancelled", changed_at=now)
        .returning(Booking.pool_id, Booking.place_no)
    )
    return [(row.pool_id, row.place_no) for row in rows]


async def claim_changed(db: AsyncSession, *, claim_id: UUID) -> None:
    """Raise a claim's revision, so that the gate will hear of it, and let its state follow from its bookings."""

    def has(status: str) -> ColumnElement[bool]:
        return exists().where(Booking.claim_id == Claim.id, Booking.status == status)

    await db.execute(
        update(Claim)
        .where(Claim.id == claim_id)
        .values(
            revision=Claim.revision + 1,
            state=case((has("confirmed"), "confirmed"), (has("waitlisted"), "waitlisted"), else_="cancelled"),
        )
    )


async def hand_over(db: AsyncSession, *, pool_id: UUID, place_no: int) -> UUID | None:
    """Give a free place to the first who waits for it; return their claim, or None (see `hand_over_v1`)."""
    return await db.scalar(select(func.hand_over_v1(pool_id, place_no)))
