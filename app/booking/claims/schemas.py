"""Bodies of decided claims, in the shapes that the gate answers with."""

from datetime import datetime
from uuid import UUID

from pydantic import ConfigDict, Field

from app.booking.claims.queries import BookingRow, ClaimRow
from app.booking.rows import ClaimState, StatusWord
from app.core.schemas import ResponseModel


class BookingResponse(ResponseModel):
    """One person's place, or position on the waiting list (from 1)."""

    model_config = ConfigDict(title="Booking")

    id: UUID
    person: UUID
    pool: UUID
    status: StatusWord
    place_no: int | None = Field(description="Null for a waiter.")
    position: int | None = Field(description="On the waiting list at this moment; null for a holder.")

    @classmethod
    def of(cls, row: BookingRow) -> "BookingResponse":
        """Show a stored booking."""
        return cls(
            id=row.id,
            person=row.person_id,
            pool=row.pool_id,
            status=row.status,  # pyright: ignore[reportArgumentType] - ck_booking_status_known lists the same words
            place_no=row.place_no,
            position=row.waiting_position,
        )


class ClaimResponse(ResponseModel):
    """A decided claim."""

    model_config = ConfigDict(title="DecidedClaim")

    claim: UUID
    release: UUID
    state: ClaimState
    seq: int
    bookings: list[BookingResponse]
    decided_at: datetime

    @classmethod
    def of(cls, row: ClaimRow) -> "ClaimResponse":
        """Show a stored claim."""
        return cls(
            claim=row.id,
            release=row.release_id,
            state=row.state,  # pyright: ignore[reportArgumentType] - ck_claim_state_known, less the void, never shown
            seq=row.seq or 0,
            bookings=[BookingResponse.of(booking) for booking in row.bookings],
            decided_at=row.decided_at,
        )


class ClaimList(ResponseModel):
    """An account's claims, newest first."""

    items: list[ClaimResponse]
    next: str | None
