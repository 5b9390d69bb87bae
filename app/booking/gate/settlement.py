"""Brings Redis in line with what PostgreSQL decided after the first commit: cancellations, hand-overs, voided claims.

A claim's row is its own outbox: each change raises `revision` in the same transaction, and `gate_revision` follows once
the gate has it. Whoever made the change settles it at once; the sweep settles what a crash left behind. Settling reads
PostgreSQL when it runs and the gate takes no older revision for a newer one, so order and repetition do not matter.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

import asyncpg
from redis.exceptions import ResponseError

from app.booking.gate.database import borrowed
from app.booking.gate.errors import Contradiction, NotInForce, contradiction_in
from app.booking.gate.link import SETTLE, Links
from app.booking.gate.records import ENTRY, PARKED, Status
from app.booking.gate.state import Release
from app.booking.rows import WAITING_POSITION, release_lock

# What PostgreSQL says of some claims. A waiter's number is the position in the queue at this moment.
_TRUTH: Final = f"""
SELECT release.epoch, claim.id, claim.revision, booking.person_id, pool.ordinal, booking.status, booking.place_no,
       {WAITING_POSITION} AS waiting_position
FROM claim
JOIN release ON release.id = claim.release_id
JOIN booking ON booking.claim_id = claim.id
JOIN pool ON pool.id = booking.pool_id
WHERE claim.id = ANY ($1) AND claim.release_id = $2
ORDER BY claim.id, booking.position
"""  # noqa: S608 - our own words
# A claim that somebody is changing is skipped, so that nobody deadlocks over a note: it is about to be settled again.
_MARK: Final = """
WITH told AS (
    SELECT claim.id, settled.revision
    FROM unnest($1::uuid[], $2::integer[]) AS settled (id, revision)
    JOIN claim ON claim.id = settled.id
    WHERE claim.gate_revision < settled.revision
    FOR NO KEY UPDATE OF claim SKIP LOCKED
)
UPDATE claim SET gate_revision = told.revision FROM told WHERE claim.id = told.id
"""
_BEHIND: Final = "SELECT id FROM claim WHERE release_id = $1 AND gate_revision < revision ORDER BY id LIMIT $2"
# Places that the gate parked, handed to whoever waits first. The lock keeps a rebuild out meanwhile.
_LOCK_SHARED: Final = f"SELECT {release_lock('$1', alone=False)}"
_HAND_OVER: Final = """
SELECT hand_over_v1(pool.id, parked.place_no) AS claim_id
FROM unnest($2::smallint[], $3::integer[]) AS parked (ordinal, place_no)
JOIN pool ON pool.release_id = $1 AND pool.ordinal = parked.ordinal
ORDER BY pool.id, parked.place_no
"""
_EPOCH: Final = "SELECT epoch FROM release WHERE id = $1"
# Claims settled in one script call: keeps Redis below a millisecond or two.
BATCH_LIMIT: Final = 100
_UPDATE: Final = struct.Struct("<16sIB")


class Settlement:
    """Settles claims of one release in one epoch."""

    def __init__(self, release: Release, links: Links, database: asyncpg.Pool, *, timeout_seconds: float) -> None:
        self._release = release
        self._links = links
        self._database = database
        self._timeout_seconds = timeout_seconds

    async def check_epoch(self) -> None:
        """Raise `NotInForce` where PostgreSQL has gone on to another epoch.

        A process may have died between raising the epoch and putting the new state in force. A sold-out release would
        never notice by itself: only a winner's commit looks at the epoch.
        """
        async with borrowed(self._database, timeout_seconds=self._timeout_seconds) as connection:
            epoch = await connection.fetchval(_EPOCH, self._release.release_id)
        if epoch != self._release.epoch:
            reason = "PostgreSQL is in another epoch"
            raise NotInForce(reason)

    async def release_claims(self, claim_ids: Iterable[bytes]) -> None:
        """Undo claims that PostgreSQL holds as void. Never call it for a claim whose tombstone is not committed."""
        await self._run(released=b"".join(claim_ids))

    async def free_unwanted(self, places: Sequence[tuple[int, int]]) -> None:
        """Free parked places (pool ordinal, place number) of pools in which nobody waits any more."""
        await self._run(unparked=b"".join(PARKED.pack(*place) for place in places))

    async def settle(self, claim_ids: Sequence[UUID]) -> None:
        """Tell the gate what PostgreSQL says of these claims, and note that it knows.

        Raises `NotInForce` when the gate has no usable state (a rebuild will read the same truth), `Contradiction`
        when it does not know one of the claims.
        """
        for start in range(0, len(claim_ids), BATCH_LIMIT):
            await self._settle_batch(claim_ids[start : start + BATCH_LIMIT])

    async def _settle_batch(self, claim_ids: Sequence[UUID]) -> None:
        async with borrowed(self._database, timeout_seconds=self._timeout_seconds) as connection:
            rows = await connection.fetch(_TRUTH, list(claim_ids), self._release.release_id)
        revisions: dict[UUID, int] = {}
        entries: dict[UUID, list[bytes]] = defaultdict(list)
        for row in rows:
            if row["epoch"] != self._release.epoch:
                # A rebuild has read PostgreSQL before this change, and its state is not in force yet. Told to the old
                # state and noted as told, the change would be lost with it; left alone, the next sweep finds it behind.
                reason = "PostgreSQL is in another epoch"
                raise NotInForce(reason)
            revisions[row["id"]] = row["revision"]
            number = row["waiting_position"] or row["place_no"] or 0
            status = Status.of(row["status"])
            entries[row["id"]].append(ENTRY.pack(row["person_id"].bytes, row["ordinal"], number, status))
        if not revisions:
            return
        await self._run(
            updates=b"".join(
                _UPDATE.pack(claim_id.bytes, revision, len(entries[claim_id])) + b"".join(entries[claim_id])
                for claim_id, revision in revisions.items()
            )
        )
        async with borrowed(self._database, timeout_seconds=self._timeout_seconds) as connection:
            await connection.execute(_MARK, list(revisions), list(revisions.values()))

    async def behind(self, limit: int) -> list[UUID]:
        """Return claims that have changed since the gate last heard of them."""
        async with borrowed(self._database, timeout_seconds=self._timeout_seconds) as connection:
            rows = await connection.fetch(_BEHIND, self._release.release_id, limit)
        return [row["id"] for row in rows]

    async def hand_over(self, places: Sequence[tuple[int, int]]) -> list[UUID]:
        """Give parked places to those who wait first, in PostgreSQL. Returns the claims that got one.

        A place that is held by now, or that nobody wants, stays parked: see `free_unwanted`.
        """
        release_id = self._release.release_id
        async with (
            borrowed(self._database, timeout_seconds=self._timeout_seconds) as connection,
            connection.transaction(),
        ):
            await connection.execute(_LOCK_SHARED, release_id)
            if await connection.fetchval(_EPOCH, release_id) != self._release.epoch:
                reason = "the epoch is over"
                raise NotInForce(reason)
            rows = await connection.fetch(
                _HAND_OVER, release_id, [place[0] for place in places], [place[1] for place in places]
            )
        return [row["claim_id"] for row in rows if row["claim_id"] is not None]

    async def _run(
        self,
        *,
        released: bytes = b"",
        updates: bytes = b"",
        unparked: bytes = b"",
    ) -> None:
        release, keys = self._release, self._release.keys
        names = [keys.meta, keys.pools, keys.claims, keys.people, keys.accounts, keys.pending, keys.parked, keys.ahead]
        names.extend(release.free_maps)
        async with self._links.lend() as link:
            try:
                reply = await link.run(SETTLE, names, [link.identity, release.epoch, released, updates, unparked])
            except ResponseError as error:
                raise contradiction_in(error) or error from None
        if reply[:1] != b"O":
            raise NotInForce(reply.decode())
        unknown = int.from_bytes(reply[1:5], "little")
        if unknown:
            reason = f"the gate does not know {unknown} claims that PostgreSQL holds"
            raise Contradiction(reason)
