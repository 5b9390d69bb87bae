"""The rules of looking up and giving back."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.booking.claims import queries
from app.booking.claims.errors import TooLateToCancel
from app.booking.claims.queries import BookingRow, ClaimRow
from app.booking.rows import LIVE_WORDS
from app.core.clock import iso
from app.core.problems import NotFound


async def own_claim(db: AsyncSession, *, claim_id: UUID, account_id: UUID) -> ClaimRow:
    """Return a claim of this account. Raises `NotFound` for one of others, or of nobody."""
    claim = await queries.claim_by_id(db, claim_id=claim_id)
    if claim is None or claim.account_id != account_id:
        raise NotFound
    return claim


async def own_claims(
    db: AsyncSession, *, account_id: UUID, before: tuple[datetime, UUID] | None, limit: int
) -> list[ClaimRow]:
    """Return an account's claims, newest first."""
    return await queries.claims_of_account(db, account_id=account_id, before=before, limit=limit)


async def own_claim_of_booking(db: AsyncSession, *, booking_id: UUID) -> UUID:
    """Return the claim of a booking. Raises `NotFound` where there is none."""
    claim_id = await queries.claim_of_booking(db, booking_id=booking_id)
    if claim_id is None:
        raise NotFound
    return claim_id


async def give_back(
    db: AsyncSession,
    *,
    claim_id: UUID,
    account_id: UUID,
    only_booking_id: UUID | None,
    now: datetime,
    notice: timedelta,
) -> tuple[ClaimRow, list[UUID]]:
    """Give back a whole claim, or one booking of it. Giving back again changes nothing.

    Where somebody waits, each place passes to the first of them in this same transaction, so that no newcomer can slip
    in between. Returns the claim as it stands then, and every claim that changed, for the gate to hear of.

    Raises `NotFound`, and `TooLateToCancel` less than `notice` before the start of a place that is held (waiting can be
    given up at any time).
    """
    locked = await queries.lock_claim(db, claim_id=claim_id, account_id=account_id)
    if locked is None:
        raise NotFound
    claim = await own_claim(db, claim_id=claim_id, account_id=account_id)
    wanted = [
        booking for booking in claim.bookings if booking.status in LIVE_WORDS and only_booking_id in {None, booking.id}
    ]
    if not wanted:
        return claim, []
    for booking in wanted:
        _check_deadline(booking, now=now, notice=notice)
    changed = await _give_up(db, claim_id, wanted, now=now)
    return await own_claim(db, claim_id=claim_id, account_id=account_id), changed


async def give_up_places(db: AsyncSession, *, person_id: UUID, now: datetime) -> dict[UUID, list[UUID]]:
    """Give back what a person holds, or waits for, of every session that has not begun; whoever claimed it.

    For somebody who is erased: no notice is asked, since nobody is left who could come or could give the place back
    later. What has begun stays as it is, for the counts. Returns the claims that changed by their releases.
    """
    changed: dict[UUID, list[UUID]] = {}
    for claim_id, account_id in await queries.claims_to_come(db, person_id=person_id, now=now):
        locked = await queries.lock_claim(db, claim_id=claim_id, account_id=account_id)
        claim = await queries.claim_by_id(db, claim_id=claim_id)
        if locked is None or claim is None:
            continue
        # Read again under the lock: meanwhile a waiter may have got a place, or may have left.
        wanted = [
            booking
            for booking in claim.bookings
            if booking.person_id == person_id and booking.status in LIVE_WORDS and booking.starts_at > now
        ]
        if wanted:
            changed.setdefault(claim.release_id, []).extend(await _give_up(db, claim_id, wanted, now=now))
    return changed


async def _give_up(db: AsyncSession, claim_id: UUID, bookings: Sequence[BookingRow], *, now: datetime) -> list[UUID]:
    """Cancel bookings of a locked claim, hand their places over, and return every claim that changed."""
    freed = await queries.cancel_bookings(
        db, claim_id=claim_id, booking_ids=[booking.id for booking in bookings], now=now
    )
    await queries.claim_changed(db, claim_id=claim_id)
    changed = [claim_id]
    # Sorted: two families that give back at once lock the pools in the same order.
    for pool_id, place_no in sorted((pool_id, place_no) for pool_id, place_no in freed if place_no is not None):
        receiver = await queries.hand_over(db, pool_id=pool_id, place_no=place_no)
        if receiver is not None:
            changed.append(receiver)
    return changed


def _check_deadline(booking: BookingRow, *, now: datetime, notice: timedelta) -> None:
    deadline = booking.starts_at - notice
    if booking.status == "confirmed" and now > deadline:
        raise TooLateToCancel(extra={"deadline": iso(deadline), "booking": str(booking.id)})
