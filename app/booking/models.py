"""Tables of booking. PostgreSQL is the truth; the constraints below are the last guard of every promise.

A UNIQUE alone does not cap a pool's capacity: a lying Redis could hand out place 31 of 30. The foreign key from
`booking` to the pre-made rows of `place` does.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSTZRANGE, ExcludeConstraint, Range
from sqlalchemy.orm import Mapped, mapped_column

from app.booking.rows import CLAIM_STATES, HOLDS_A_PLACE, LIVE, STATUS_WORDS, one_of
from app.core.db import Base
from app.core.ids import new_id

_NOW = func.now()
_INSTANT = DateTime(timezone=True)


class Release(Base):
    """One opening of several pools at one second."""

    __tablename__ = "release"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    title: Mapped[str] = mapped_column(String(120))
    mode: Mapped[str] = mapped_column(String(16), server_default="grab")
    state: Mapped[str] = mapped_column(String(16), server_default="draft")
    opens_at: Mapped[datetime] = mapped_column(_INSTANT)
    closes_at: Mapped[datetime] = mapped_column(_INSTANT)
    # Most live bookings (held or waiting) that one person, and one account, may have in this release.
    person_limit: Mapped[int] = mapped_column(SmallInteger)
    account_limit: Mapped[int] = mapped_column(SmallInteger)
    rules: Mapped[str] = mapped_column(Text, server_default="")
    # Set by publishing; every booking carries it.
    rules_version: Mapped[str | None] = mapped_column(String(32))
    # Raised by every rebuild of the gate, and never lowered.
    epoch: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # Which Redis server the gate of this epoch was built on: run id and replication id.
    gate_identity: Mapped[str | None] = mapped_column(String(128))
    created_by: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    published_at: Mapped[datetime | None] = mapped_column(_INSTANT)

    __table_args__ = (
        CheckConstraint("mode IN ('grab')", name="mode_known"),
        CheckConstraint("state IN ('draft', 'published', 'cancelled')", name="state_known"),
        CheckConstraint("closes_at > opens_at", name="closes_after_opening"),
        CheckConstraint("person_limit >= 1 AND account_limit >= 1", name="limits_positive"),
        CheckConstraint("(state = 'draft') = (rules_version IS NULL)", name="published_has_rules"),
        CheckConstraint("epoch >= 0", name="epoch_not_negative"),
        Index("ix_release_opens_at", "opens_at"),
    )


class ReleaseChange(Base):
    """That staff changed something for which they had to give a reason. Rows stay: history is never deleted."""

    __tablename__ = "release_change"

    # Sorts by age, as every id here does.
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    release_id: Mapped[UUID] = mapped_column(ForeignKey("release.id"))
    # Null where the release itself was changed.
    pool_id: Mapped[UUID | None] = mapped_column(ForeignKey("pool.id"))
    changed_by: Mapped[UUID]
    changed_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    reason: Mapped[str] = mapped_column(String(300))
    # Name of the field: [value before, value after].
    changes: Mapped[dict[str, Any]] = mapped_column(JSONB)

    __table_args__ = (Index("ix_release_change_release", "release_id", "id"),)


class Pool(Base):
    """A number of places of one kind at one time span, and who may claim them."""

    __tablename__ = "pool"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    release_id: Mapped[UUID] = mapped_column(ForeignKey("release.id"))
    # The pool's number within its release: never changed, never reused. Passes name pools by it.
    ordinal: Mapped[int] = mapped_column(SmallInteger)
    kind: Mapped[str] = mapped_column(String(24))
    title: Mapped[str] = mapped_column(String(120))
    station_id: Mapped[UUID | None] = mapped_column(ForeignKey("station.id"))
    during: Mapped[Range[datetime]] = mapped_column(TSTZRANGE)
    age_min: Mapped[int | None] = mapped_column(SmallInteger)
    age_max: Mapped[int | None] = mapped_column(SmallInteger)
    resident_unit_id: Mapped[UUID | None] = mapped_column(ForeignKey("unit.id"))
    waitlist_limit: Mapped[int] = mapped_column(Integer, server_default="0")
    state: Mapped[str] = mapped_column(String(16), server_default="open")
    # How many rows it has in `place`, kept by a trigger there: for showing. What decides counts the rows.
    capacity: Mapped[int] = mapped_column(Integer, server_default="0")

    __table_args__ = (
        CheckConstraint("state IN ('open', 'cancelled')", name="state_known"),
        CheckConstraint("capacity >= 0", name="capacity_not_negative"),
        CheckConstraint("waitlist_limit >= 0", name="waitlist_limit_not_negative"),
        CheckConstraint("ordinal >= 0", name="ordinal_not_negative"),
        CheckConstraint("age_min >= 0 AND age_max >= age_min", name="age_band"),
        CheckConstraint(
            "NOT isempty(during) AND NOT lower_inf(during) AND NOT upper_inf(during)", name="during_bounded"
        ),
        Index("uq_pool_ordinal", "release_id", "ordinal", unique=True),
        Index("ix_pool_station", "station_id"),
    )


class Place(Base):
    """One place. A pool's capacity is the number of its rows here, and nothing else."""

    __tablename__ = "place"

    pool_id: Mapped[UUID] = mapped_column(ForeignKey("pool.id"), primary_key=True)
    place_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    lane: Mapped[str] = mapped_column(String(8), server_default="online")

    __table_args__ = (
        CheckConstraint("place_no >= 1", name="place_no_positive"),
        CheckConstraint("lane IN ('online', 'walk_in', 'staff')", name="lane_known"),
    )


class Claim(Base):
    """What a phone asked for, under an id that the phone chose. The first writer of an id decides it, for ever."""

    __tablename__ = "claim"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    release_id: Mapped[UUID] = mapped_column(ForeignKey("release.id"))
    # Null only for a void claim, of which nothing but the id is known.
    account_id: Mapped[UUID | None]
    acted_by: Mapped[UUID | None]
    epoch: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    rules_version: Mapped[str | None] = mapped_column(String(32))
    request: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    fingerprint: Mapped[bytes | None] = mapped_column(LargeBinary)
    decided_at: Mapped[datetime] = mapped_column(_INSTANT)
    # Raised by each change after the first commit; the gate takes no older word for a newer one.
    revision: Mapped[int] = mapped_column(Integer, server_default="1")
    # The revision that the gate is known to have. Behind `revision`, this row is its own outbox entry.
    gate_revision: Mapped[int] = mapped_column(Integer, server_default="1")

    __table_args__ = (
        CheckConstraint(one_of("state", CLAIM_STATES), name="state_known"),
        CheckConstraint("(state = 'void') = (account_id IS NULL)", name="void_is_nobodys"),
        Index("ix_claim_account", "account_id", text("decided_at DESC")),
        Index("ix_claim_release", "release_id"),
        Index("ix_claim_gate_behind", "release_id", postgresql_where=text("gate_revision < revision")),
    )


class Booking(Base):
    """One person holding, or waiting for, one place. Cancelled rows stay: history is never deleted."""

    __tablename__ = "booking"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    claim_id: Mapped[UUID] = mapped_column(ForeignKey("claim.id"))
    # The person's place in the claim's list: an answer tells people in the order in which they were named.
    position: Mapped[int] = mapped_column(SmallInteger)
    person_id: Mapped[UUID]
    pool_id: Mapped[UUID] = mapped_column(ForeignKey("pool.id"))
    place_no: Mapped[int | None] = mapped_column(Integer)
    during: Mapped[Range[datetime]] = mapped_column(TSTZRANGE)
    status: Mapped[str] = mapped_column(String(24))
    wait_seq: Mapped[int | None] = mapped_column(BigInteger)
    rules_version: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    changed_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    cancelled_reason: Mapped[str | None] = mapped_column(String(200))

    __table_args__ = (
        ForeignKeyConstraint(["pool_id", "place_no"], ["place.pool_id", "place.place_no"], name="fk_booking_place"),
        CheckConstraint(one_of("status", STATUS_WORDS), name="status_known"),
        CheckConstraint("status <> 'confirmed' OR place_no IS NOT NULL", name="holder_has_a_place"),
        CheckConstraint("status <> 'waitlisted' OR (place_no IS NULL AND wait_seq IS NOT NULL)", name="waiter_waits"),
        Index(
            "uq_booking_one_holder_each_place",
            "pool_id",
            "place_no",
            unique=True,
            postgresql_where=text(HOLDS_A_PLACE),
        ),
        # The person first: the live bookings of one person are found by it, too.
        Index("uq_booking_one_each_person", "person_id", "pool_id", unique=True, postgresql_where=text(LIVE)),
        Index("ix_booking_claim", "claim_id"),
        Index("ix_booking_waiting", "pool_id", "wait_seq", postgresql_where=text("status = 'waitlisted'")),
        ExcludeConstraint(
            ("person_id", "="),
            ("during", "&&"),
            name="ex_booking_nobody_in_two_places",
            using="gist",
            where=text(HOLDS_A_PLACE),
        ),
    )
