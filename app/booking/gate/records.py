"""What the gate keeps in Redis, packed; the scripts read and write the same layouts.

Little-endian throughout. A claim: revision (u32), fingerprint (8 bytes), account (16), sequence number (u64),
decided (u64, Unix ms), then for each booking: person (16), pool ordinal (u16), place number, or position on the waiting
list (u32), status (u8). A pool: free, capacity, waiting, waiting list's limit, pending, lowest byte of the free map
that may have a free bit (u32 each), open (u8).
"""

import struct
from enum import IntEnum
from typing import Final, Self
from uuid import UUID

import msgspec

from app.booking.rows import LIVE_WORDS, STATUS_WORDS, ClaimState, StatusWord
from app.core.ids import derived_id

CLAIM_HEAD: Final = struct.Struct("<I8s16sQQ")
ENTRY: Final = struct.Struct("<16sHIB")
BOOKED: Final = struct.Struct("<HI16s")
POOL: Final = struct.Struct("<IIIIIIB")
PARKED: Final = struct.Struct("<HI")


class Status(IntEnum):
    """How a booking stands."""

    CONFIRMED = 1
    WAITLISTED = 2
    CANCELLED = 3
    CANCELLED_BY_STAFF = 4

    @property
    def word(self) -> StatusWord:
        """Return the word that PostgreSQL and the API use."""
        return _WORDS[self]

    @classmethod
    def of(cls, word: str) -> "Status":
        """Return the status that PostgreSQL and the API call so."""
        return cls[word.upper()]


_WORDS: Final[dict[Status, StatusWord]] = {Status.of(word): word for word in STATUS_WORDS}
LIVE: Final = frozenset(Status.of(word) for word in LIVE_WORDS)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One person of a claim: which pool, and the place number, or the position on the waiting list."""

    person: bytes
    ordinal: int
    number: int
    status: Status


class ClaimRecord(msgspec.Struct, frozen=True):
    """A decided claim as the gate remembers it."""

    claim_id: UUID
    revision: int
    fingerprint: bytes
    account: bytes
    seq: int
    decided_ms: int
    entries: tuple[Entry, ...]

    @classmethod
    def unpack(cls, claim_id: UUID, packed: bytes) -> Self:
        """Read a packed claim."""
        revision, fingerprint, account, seq, decided_ms = CLAIM_HEAD.unpack_from(packed)
        entries = tuple(
            Entry(person, ordinal, number, Status(status))
            for person, ordinal, number, status in ENTRY.iter_unpack(memoryview(packed)[CLAIM_HEAD.size :])
        )
        return cls(claim_id, revision, fingerprint, account, seq, decided_ms, entries)

    def pack(self) -> bytes:
        """Return the packed form."""
        head = CLAIM_HEAD.pack(self.revision, self.fingerprint, self.account, self.seq, self.decided_ms)
        return head + b"".join(ENTRY.pack(e.person, e.ordinal, e.number, e.status) for e in self.entries)

    def booking_id(self, entry: Entry) -> UUID:
        """Return the id of this person's booking: it follows from claim and person, the same each time."""
        return derived_id(self.decided_ms, self.claim_id.bytes, entry.person)

    @property
    def state(self) -> ClaimState:
        """Return the claim's state in a word: confirmed, waitlisted or cancelled."""
        statuses = {entry.status for entry in self.entries}
        if Status.CONFIRMED in statuses:
            return "confirmed"
        return "waitlisted" if Status.WAITLISTED in statuses else "cancelled"


class PoolCounts(msgspec.Struct, frozen=True):
    """The counts of one pool in the gate. `pending`: taken or parked, not yet known to be settled."""

    free: int
    capacity: int
    waiting: int
    waitlist_limit: int
    pending: int
    hint_byte: int
    is_open: bool

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Read a packed pool."""
        *counts, is_open = POOL.unpack(packed)
        return cls(*counts, is_open=bool(is_open))

    def pack(self) -> bytes:
        """Return the packed form."""
        return POOL.pack(
            self.free,
            self.capacity,
            self.waiting,
            self.waitlist_limit,
            self.pending,
            self.hint_byte,
            self.is_open,
        )
