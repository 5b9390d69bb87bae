"""The bodies that the gate reads and writes, declared once: the desk speaks them, the API's document shows them."""

from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from app.booking.gate.records import ClaimRecord, Entry, Status
from app.booking.gate.state import Release
from app.booking.rows import ClaimState, StatusWord
from app.core.clock import iso_of_ms
from app.core.ids import id_of

PoolState = Literal["upcoming", "open", "full", "sold_out", "closed"]
Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class ClaimBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a phone asks for, under an id that it chose itself."""

    release: UUID
    people: Annotated[list[UUID], Meta(description="For whom: ids from the pass, each once.")]
    choices: Annotated[list[UUID], Meta(description="Pools in order of preference: the first that fits is taken.")]
    together: Annotated[bool, Meta(description="All the people in one pool, or nobody.")] = True
    waitlist: Annotated[
        bool, Meta(description="Wait where nothing fits. Several people can wait only with `together: false`.")
    ] = False


class BookingView(msgspec.Struct):
    """One person's place, or position on a waiting list (from 1)."""

    id: UUID
    person: UUID
    pool: UUID
    status: StatusWord
    place_no: Annotated[int | None, Meta(description="Null for a waiter, and where no place was ever had.")]
    position: Annotated[
        int | None,
        Meta(
            description="On the waiting list, when it joined; `GET` with `Authorization: Bearer` tells the present one."
            " Null for everybody else."
        ),
    ]


class ClaimView(msgspec.Struct):
    """A decided claim: in the database, and the same at every asking until it is given back."""

    claim: UUID
    release: UUID
    state: ClaimState
    seq: Annotated[int, Meta(description="The claim's number among those that got something in this release.")]
    bookings: list[BookingView]
    decided_at: Instant


class PendingView(msgspec.Struct):
    """The outcome is not known yet: send the same request again."""

    claim: UUID
    retry_after_ms: int
    state: Literal["pending"] = "pending"


class PoolAvailability(msgspec.Struct):
    """What is left of one pool."""

    id: UUID
    capacity: int
    left: int
    waiting: int
    state: PoolState


class AvailabilityView(msgspec.Struct):
    """What is left of a release."""

    release: UUID
    as_of: Instant
    version: Annotated[int, Meta(description="Grows with every change, until the gate is rebuilt.")]
    pools: list[PoolAvailability]


BODIES: Final = (ClaimBody, ClaimView, PendingView, AvailabilityView)


def booking_view(release: Release, record: ClaimRecord, entry: Entry) -> BookingView:
    """Return one booking as the API shows it."""
    waits = entry.status is Status.WAITLISTED
    return BookingView(
        id=record.booking_id(entry),
        person=id_of(entry.person),
        pool=release.pool_ids[entry.ordinal],
        status=entry.status.word,
        # 0 stands for a place that was never had, or is gone by now.
        place_no=None if waits else entry.number or None,
        position=entry.number if waits else None,
    )


def claim_view(release: Release, record: ClaimRecord) -> ClaimView:
    """Return a decided claim as the API shows it."""
    return ClaimView(
        claim=record.claim_id,
        release=release.release_id,
        state=record.state,
        seq=record.seq,
        bookings=[booking_view(release, record, entry) for entry in record.entries],
        decided_at=iso_of_ms(record.decided_ms),
    )
