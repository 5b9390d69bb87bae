"""Reads what Redis and what PostgreSQL hold of one release. Changes nothing, and builds no state where there is none.

The two are read one after the other while claims come and go, so what they say differs at any instant by what is on its
way. `differences` tells that from a real difference. Everything is kept as packed as it comes: a release may have a
million places.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast
from uuid import UUID

import asyncpg

from app.booking.gate.database import borrowed
from app.booking.gate.errors import NotInForce
from app.booking.gate.keys import BALLAST_FIELD, EpochKeys, meta_key
from app.booking.gate.link import Argument, Link, Reply, ms_of_time
from app.booking.gate.records import BOOKED, PARKED, ClaimRecord, PoolCounts, Status
from app.booking.gate.state import ReleaseSetup
from app.booking.rows import LIVE_WORDS
from app.core.clock import to_ms
from app.core.ids import id_of

# Fields of a hash that Redis looks at in one call, and claims that are asked for at once: it answers others in between.
_SCAN_COUNT: Final = 1_000
# How often the state is looked for again when it was made anew between two looks.
_TRIES_MAX: Final = 5

_RELEASE: Final = """
SELECT title, epoch, gate_identity, opens_at, closes_at, person_limit, account_limit FROM release
WHERE id = $1 AND state = 'published'
"""
_POOLS: Final = """
SELECT id, ordinal, title, state, waitlist_limit, lower(during) > clock_timestamp() AS is_to_come FROM pool
WHERE release_id = $1 ORDER BY ordinal
"""
_PLACES: Final = """
SELECT pool.ordinal, array_agg(place.place_no) AS places FROM place JOIN pool ON pool.id = place.pool_id
WHERE pool.release_id = $1 AND place.lane = 'online' GROUP BY pool.ordinal
"""
_BOOKINGS: Final = """
SELECT claim.id, claim.account_id, claim.seq, claim.revision, claim.gate_revision,
       booking.person_id, pool.ordinal, booking.place_no, booking.status
FROM claim JOIN booking ON booking.claim_id = claim.id JOIN pool ON pool.id = booking.pool_id
WHERE claim.release_id = $1 AND claim.state <> 'void'
ORDER BY claim.id, booking.position
"""
_VOID: Final = "SELECT id FROM claim WHERE id = ANY ($1) AND (state = 'void' OR release_id <> $2)"
# Does not wait, and lets go at once: whoever rebuilds holds it alone.
_BEING_REBUILT: Final = """
SELECT EXISTS (SELECT FROM pg_locks, hashtextextended('release:' || $1::uuid::text, 0) AS key
               WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted
                 AND ((classid::bigint << 32) | objid::bigint) = key AND objsubid = 1)
"""
_LIVE: Final = frozenset(Status.of(word) for word in LIVE_WORDS)


class Held(NamedTuple):
    """One person of a claim. `place`: 0 for somebody who waits: positions move by themselves."""

    person: bytes
    ordinal: int
    place: int
    status: Status

    @property
    def is_live(self) -> bool:
        """Tell whether it has a place, or wants one."""
        return self.status in _LIVE


class Known(NamedTuple):
    """A claim as one of the two has it. `told`: the revision that PostgreSQL believes the gate to have."""

    account: bytes
    seq: int
    revision: int
    told: int
    people: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class GateSide:
    """What Redis has in force. Claims, people and accounts are read after the rest, some at a time."""

    epoch: int
    # The server that the state was built on (None: it is suspended), and the one that answers.
    built_on: str | None
    server: str
    now_ms: int
    hours_and_limits: tuple[int, ...]
    counts: Mapping[int, PoolCounts]
    free_maps: Mapping[int, bytes]
    # Until when, in ms since 1970, each claim on its way has time.
    pending: Mapping[bytes, int]
    parked: frozenset[tuple[int, int]]
    ahead: Mapping[tuple[int, int], int]
    claims: Mapping[bytes, bytes]
    people: Mapping[bytes, bytes]
    accounts: Mapping[bytes, int]

    def claim(self, claim_id: bytes) -> Known | None:
        """Return a claim as the gate has it."""
        packed = self.claims.get(claim_id)
        if packed is None:
            return None
        record = ClaimRecord.unpack(id_of(claim_id), packed)
        people = tuple(
            Held(entry.person, entry.ordinal, 0 if entry.status is Status.WAITLISTED else entry.number, entry.status)
            for entry in record.entries
        )
        return Known(record.account, record.seq, record.revision, record.revision, people)

    def booked(self, person: bytes) -> frozenset[tuple[int, int, bytes]]:
        """Return where somebody is booked, as ordinal, place (0: waiting) and claim."""
        return frozenset(cast("Iterable[tuple[int, int, bytes]]", BOOKED.iter_unpack(self.people.get(person, b""))))

    def is_free(self, ordinal: int, place: int) -> bool:
        """Tell whether the bit of a place is set."""
        free_map = self.free_maps[ordinal]
        # Redis counts bits from the most significant of each byte.
        return place >> 3 < len(free_map) and bool(free_map[place >> 3] & 0x80 >> (place & 7))


class PoolRow(NamedTuple):
    """A pool in PostgreSQL. `is_to_come`: its session has not begun."""

    ordinal: int
    pool_id: UUID
    title: str
    is_open: bool
    is_to_come: bool
    waitlist_limit: int
    places: frozenset[int]


@dataclass(frozen=True, slots=True)
class DatabaseSide:
    """What PostgreSQL holds, all of one instant.

    `void`: of the claims that only the gate knows, those that can never be booked here.
    """

    title: str
    epoch: int
    built_on: str | None
    hours_and_limits: tuple[int, ...]
    pools: tuple[PoolRow, ...]
    claims: Mapping[bytes, Known]
    void: frozenset[bytes] = field(default_factory=frozenset[bytes])


async def read_gate_side(link: Link, release_id: UUID) -> GateSide | None:
    """Read what Redis has of a release, or None where it has nothing at all.

    Raises `NotInForce` where the state is made anew again and again meanwhile, and the driver's errors.
    """
    for _ in range(_TRIES_MAX):
        (meta,) = await link.commands([["HMGET", meta_key(release_id), "epoch", "setup"]])
        epoch, packed_setup = cast("list[bytes | None]", meta)
        if epoch is None or packed_setup is None:
            return None
        setup = ReleaseSetup.unpack(packed_setup)
        side = await _read_epoch(link, release_id, int(epoch), len(setup.pools))
        if side is not None:
            return side
    reason = "the state is made anew again and again"
    raise NotInForce(reason)


async def _read_epoch(link: Link, release_id: UUID, epoch: int, pools: int) -> GateSide | None:
    keys = EpochKeys(release_id, epoch)
    fields = ("epoch", "identity", "opens_ms", "closes_ms", "person_limit", "account_limit")
    commands: list[list[Argument]] = [
        ["HMGET", keys.meta, *fields],
        ["TIME"],
        ["HGETALL", keys.pools],
        ["ZRANGE", keys.pending, 0, -1, "WITHSCORES"],
        ["HKEYS", keys.parked],
        ["HGETALL", keys.ahead],
        *(["GET", keys.free_map(ordinal)] for ordinal in range(pools)),
    ]
    # Counts and bits belong together: they are of one instant.
    *_, replies = await link.commands([["MULTI"], *commands, ["EXEC"]])
    meta, time, counts, pending, parked, ahead, *free_maps = cast("list[Reply]", replies)
    found, built_on, *limits = cast("list[bytes | None]", meta)
    if found is None or int(found) != epoch:
        return None
    packed_counts = cast("dict[bytes, bytes]", counts)
    packed_counts.pop(BALLAST_FIELD, None)
    claims = {field: value async for field, value in _scan(link, keys.claims)}
    people = {field: value async for field, value in _scan(link, keys.people)}
    accounts = {field: int(value) async for field, value in _scan(link, keys.accounts)}
    (after,) = await link.commands([["HGET", keys.meta, "epoch"]])
    if after != found:
        return None
    return GateSide(
        epoch=epoch,
        built_on=None if built_on is None else built_on.decode(),
        server=link.identity,
        now_ms=ms_of_time(time),
        hours_and_limits=tuple(int(limit or 0) for limit in limits),
        counts={int(ordinal): PoolCounts.unpack(packed) for ordinal, packed in packed_counts.items()},
        free_maps={ordinal: cast("bytes | None", packed) or b"" for ordinal, packed in enumerate(free_maps)},
        pending={claim: int(deadline) for claim, deadline in cast("list[tuple[bytes, float]]", pending)},
        parked=frozenset(_place_of(packed) for packed in cast("list[bytes]", parked)),
        ahead={_place_of(packed): int(count) for packed, count in cast("dict[bytes, bytes]", ahead).items()},
        claims=claims,
        people=people,
        accounts=accounts,
    )


def _place_of(packed: bytes) -> tuple[int, int]:
    return cast("tuple[int, int]", PARKED.unpack(packed))


async def _scan(link: Link, key: str) -> AsyncGenerator[tuple[bytes, bytes]]:
    """Yield the fields of a hash, some at a time; those that change meanwhile come as they were or as they are."""
    cursor = b"0"
    while True:
        (reply,) = await link.commands([["HSCAN", key, cursor, "COUNT", _SCAN_COUNT]])
        cursor, flat = cast("tuple[bytes, list[bytes]]", reply)
        for field_name, value in zip(flat[::2], flat[1::2], strict=True):
            if field_name != BALLAST_FIELD:
                yield field_name, value
        if cursor == b"0":
            return


async def read_database_side(
    database: asyncpg.Pool, release_id: UUID, gate: GateSide | None, *, timeout_seconds: float
) -> DatabaseSide | None:
    """Read what PostgreSQL holds of a published release, or None where there is none. Raises the driver's errors."""
    async with (
        borrowed(database, timeout_seconds=timeout_seconds) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        release = await connection.fetchrow(_RELEASE, release_id)
        if release is None:
            return None
        places = {row["ordinal"]: frozenset[int](row["places"]) for row in await connection.fetch(_PLACES, release_id)}
        pools = tuple(
            PoolRow(
                row["ordinal"],
                row["id"],
                row["title"],
                row["state"] == "open",
                row["is_to_come"],
                row["waitlist_limit"],
                places.get(row["ordinal"], frozenset()),
            )
            for row in await connection.fetch(_POOLS, release_id)
        )
        claims = {claim_id: known async for claim_id, known in _claims(connection, release_id)}
        only_there = [] if gate is None else [id_of(claim) for claim in gate.claims if claim not in claims]
        void = await connection.fetch(_VOID, only_there, release_id) if only_there else []
    return DatabaseSide(
        title=release["title"],
        epoch=release["epoch"],
        built_on=release["gate_identity"],
        hours_and_limits=(
            to_ms(release["opens_at"]),
            to_ms(release["closes_at"]),
            release["person_limit"],
            release["account_limit"],
        ),
        pools=pools,
        claims=claims,
        void=frozenset(row["id"].bytes for row in void),
    )


async def _claims(
    connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", release_id: UUID
) -> AsyncGenerator[tuple[bytes, Known]]:
    """Yield claims by id; the bookings of one come one after another."""
    claim_id, known = b"", Known(b"", 0, 0, 0, ())
    async for row in connection.cursor(_BOOKINGS, release_id, prefetch=_SCAN_COUNT):
        status = Status.of(row["status"])
        place = 0 if status is Status.WAITLISTED else row["place_no"] or 0
        held = Held(row["person_id"].bytes, row["ordinal"], place, status)
        if row["id"].bytes != claim_id:
            if claim_id:
                yield claim_id, known
            claim_id = row["id"].bytes
            known = Known(row["account_id"].bytes, row["seq"], row["revision"], row["gate_revision"], (held,))
        else:
            known = known._replace(people=(*known.people, held))
    if claim_id:
        yield claim_id, known


async def is_being_rebuilt(database: asyncpg.Pool, release_id: UUID, *, timeout_seconds: float) -> bool:
    """Tell whether somebody holds the release's lock alone at this moment, as a rebuild does."""
    async with borrowed(database, timeout_seconds=timeout_seconds) as connection:
        return bool(await connection.fetchval(_BEING_REBUILT, release_id))
