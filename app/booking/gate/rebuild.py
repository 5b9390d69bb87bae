"""Makes the state of a release anew from PostgreSQL, which is the truth.

Holding the release's lock alone: epoch + 1 and the identity of the server that is to hold the state are written, free
places are handed to whoever waits, everything is read and loaded under keys of the new epoch, which nobody reads yet.
After the commit one script puts the epoch in force. A claim that was admitted under the old epoch can no longer be
committed: its phone asks again and is judged by the new state.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple, cast
from uuid import UUID

import asyncpg

from app.booking.gate.database import borrowed
from app.booking.gate.errors import NotInForce
from app.booking.gate.keys import BALLAST, BALLAST_FIELD, LOADING_EXPIRY_SECONDS, EpochKeys, meta_key
from app.booking.gate.link import ACTIVATE, Argument, Link, Links
from app.booking.gate.records import BOOKED, CLAIM_HEAD, ENTRY, LIVE, PoolCounts, Status
from app.booking.gate.state import PoolSetup, Release, ReleaseSetup
from app.booking.rows import WAITING_POSITION_OF_ALL, release_lock
from app.core.clock import to_ms
from app.core.ids import id_of
from app.core.problems import NotFound

_ONE_AT_A_TIME: Final = "SELECT pg_advisory_lock(hashtextextended('rebuild:' || $1::uuid::text, 0))"
_NEXT_PLEASE: Final = "SELECT pg_advisory_unlock(hashtextextended('rebuild:' || $1::uuid::text, 0))"
_LOCK_ALONE: Final = f"SELECT {release_lock('$1', alone=True)}"
_PUBLISHED: Final = "SELECT EXISTS (SELECT FROM release WHERE id = $1 AND state = 'published')"
_RELEASE: Final = """
SELECT state, opens_at, closes_at, person_limit, account_limit, epoch, gate_identity FROM release WHERE id = $1
"""
_HAND_OUT: Final = """
SELECT count(*) FILTER (WHERE hand_over_v1(vacant.pool_id, vacant.place_no) IS NOT NULL)
FROM (
    SELECT place.pool_id, place.place_no
    FROM place
    JOIN pool ON pool.id = place.pool_id
    WHERE pool.release_id = $1 AND place.lane = 'online'
      AND EXISTS (SELECT FROM booking WHERE booking.pool_id = pool.id AND booking.status = 'waitlisted')
      AND NOT EXISTS (SELECT FROM booking
                      WHERE booking.pool_id = place.pool_id AND booking.place_no = place.place_no
                        AND booking.status = 'confirmed')
    ORDER BY place.pool_id, place.place_no
) AS vacant
"""
_RAISE_EPOCH: Final = """
UPDATE release SET epoch = greatest(epoch, $3) + 1, gate_identity = $2 WHERE id = $1 RETURNING epoch
"""
_ALL_SETTLED: Final = "UPDATE claim SET gate_revision = revision WHERE release_id = $1 AND gate_revision < revision"
_POOLS: Final = """
SELECT pool.id, pool.ordinal, pool.state, pool.waitlist_limit,
       (SELECT count(*) FROM place WHERE place.pool_id = pool.id AND place.lane = 'online') AS capacity,
       (SELECT coalesce(max(place_no), 0) FROM place WHERE place.pool_id = pool.id) AS highest,
       (SELECT count(*) FROM booking WHERE booking.pool_id = pool.id AND booking.status = 'waitlisted') AS waiting
FROM pool WHERE pool.release_id = $1 ORDER BY pool.ordinal
"""
_VACANT: Final = """
SELECT pool.ordinal, place.place_no
FROM place
JOIN pool ON pool.id = place.pool_id
WHERE pool.release_id = $1 AND place.lane = 'online'
  AND NOT EXISTS (SELECT FROM booking
                  WHERE booking.pool_id = place.pool_id AND booking.place_no = place.place_no
                    AND booking.status = 'confirmed')
"""
_BOOKINGS: Final = f"""
SELECT claim.id, claim.account_id, claim.seq, claim.revision, claim.fingerprint, claim.decided_at,
       booking.person_id, pool.ordinal, booking.status, booking.place_no,
       {WAITING_POSITION_OF_ALL} AS waiting_position
FROM claim
JOIN booking ON booking.claim_id = claim.id
JOIN pool ON pool.id = booking.pool_id
WHERE claim.release_id = $1 AND claim.state <> 'void'
ORDER BY claim.id, booking.position
"""  # noqa: S608 - our own words
_HIGHEST_SEQ: Final = "SELECT coalesce(max(seq), 0) FROM claim WHERE release_id = $1"
# Rows read, and fields written, at once: bounds memory here and each command's time in Redis.
_CHUNK: Final = 2_000


class Because(NamedTuple):
    """Why somebody asks for a rebuild: the epoch that did not work for them, if they had one, and whether to insist."""

    epoch: int | None = None
    insist: bool = False


async def read_release(link: Link, release_id: UUID) -> Release | None:
    """Return the release as Redis has it, or None where there is no state that this server may use."""
    meta = await _read_meta(link, release_id)
    if meta.get(b"identity") not in {None, link.identity.encode()}:
        # The server may have a new replication id since this connection was made: look again who it is.
        await link.drop()
        meta = await _read_meta(link, release_id)
    return Release.from_meta(meta) if meta.get(b"identity") == link.identity.encode() else None


async def suspend(link: Link, release_id: UUID) -> None:
    """Let nobody be judged by a release's state any more, until it is made anew; its epoch stays known.

    To be called with the release's lock held alone, before the commit that makes the state a thing of the past: in
    between it would go on telling "sold out" of places that PostgreSQL has. If that commit never comes, whoever asks
    next has the state made anew.
    """
    await link.commands([["HDEL", meta_key(release_id), "identity"]])


async def _read_meta(link: Link, release_id: UUID) -> dict[bytes, bytes]:
    (fields,) = await link.commands([["HGETALL", meta_key(release_id)]])
    return cast("dict[bytes, bytes]", fields)


async def rebuild(
    database: asyncpg.Pool, links: Links, release_id: UUID, because: Because, *, timeout_seconds: float
) -> Release:
    """Rebuild the state of a release, unless somebody else has done so since; return it as it is in force.

    Raises `NotFound` where there is no such published release, `NotInForce` where another rebuild overtook this one,
    and the drivers' errors.
    """
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(borrowed(database, timeout_seconds=timeout_seconds))
        if not await connection.fetchval(_PUBLISHED, release_id):
            # Before any lock: an id that somebody made up must cost one look.
            raise NotFound
        await stack.enter_async_context(_one_at_a_time(connection, release_id))
        if not because.insist:
            async with links.lend() as link:
                present = await read_release(link, release_id)
            if present is not None and (because.epoch is None or present.epoch > because.epoch):
                row = await connection.fetchrow(_RELEASE, release_id)
                if row is not None and row["epoch"] == present.epoch and row["gate_identity"] == present.identity:
                    return present
        async with connection.transaction():
            await connection.execute(_LOCK_ALONE, release_id)
            # Only now, so that a release that waits for its lock takes no link from the others.
            link = await stack.enter_async_context(links.lend())
            loader = await _read_and_load(connection, link, release_id)
        (before,) = await link.commands([["HGET", meta_key(release_id), "epoch"]])
        keys: list[str] = [meta_key(release_id), *sorted(loader.loaded)]
        setup = loader.setup
        arguments: list[Argument] = [link.identity, setup.epoch, loader.identity, *loader.meta()]
        reply = await link.run(ACTIVATE, keys, arguments)
        if reply != b"O":
            raise NotInForce(reply.decode())
        if before is not None and int(cast("bytes", before)) < setup.epoch:
            old = EpochKeys(release_id, int(cast("bytes", before)))
            await link.commands([["UNLINK", *old.everything(len(setup.pools))]])
        return Release(setup, link.identity)


@asynccontextmanager
async def _one_at_a_time(connection: "asyncpg.pool.PoolConnectionProxy", release_id: UUID) -> AsyncGenerator[None]:
    """Let the workers that found the state missing rebuild it once, not one after the other."""
    await connection.execute(_ONE_AT_A_TIME, release_id)
    try:
        yield
    finally:
        # A broken connection has given the lock back by itself.
        if not connection.is_closed():
            await connection.execute(_NEXT_PLEASE, release_id)


async def _read_and_load(connection: "asyncpg.pool.PoolConnectionProxy", link: Link, release_id: UUID) -> "_Loader":
    row = await connection.fetchrow(_RELEASE, release_id)
    if row is None or row["state"] != "published":
        raise NotFound
    await suspend(link, release_id)
    # A PostgreSQL that was restored from a back-up may be behind the gate, which never goes back.
    (in_redis,) = await link.commands([["HGET", meta_key(release_id), "epoch"]])
    await connection.fetchval(_HAND_OUT, release_id)
    epoch = await connection.fetchval(_RAISE_EPOCH, release_id, link.identity, int(cast("bytes", in_redis or b"0")))
    await connection.execute(_ALL_SETTLED, release_id)
    pools = await connection.fetch(_POOLS, release_id)
    setup = ReleaseSetup(
        release_id=release_id.bytes,
        epoch=epoch,
        opens_ms=to_ms(row["opens_at"]),
        closes_ms=to_ms(row["closes_at"]),
        person_limit=row["person_limit"],
        account_limit=row["account_limit"],
        pools=tuple(PoolSetup(pool["id"].bytes, pool["capacity"]) for pool in pools),
    )
    loader = _Loader(link, setup, seq=await connection.fetchval(_HIGHEST_SEQ, release_id))
    async for booking in connection.cursor(_BOOKINGS, release_id, prefetch=_CHUNK):
        await loader.add_booking(booking)
    await loader.end_of_bookings()
    free_maps = {pool["ordinal"]: bytearray(pool["highest"] // 8 + 1) for pool in pools}
    async for place in connection.cursor(_VACANT, release_id, prefetch=_CHUNK):
        number = place["place_no"]
        # Redis counts bits from the most significant of each byte.
        free_maps[place["ordinal"]][number // 8] |= 0x80 >> number % 8
    await loader.add_pools(pools, free_maps)
    return loader


class _Loader:
    """Writes the state of a new epoch to Redis, in chunks, under keys that nobody reads yet."""

    def __init__(self, link: Link, setup: ReleaseSetup, *, seq: int) -> None:
        self.link = link
        self.identity = link.identity
        self.setup = setup
        self.seq = seq
        self.loaded: set[str] = set()
        self._keys = EpochKeys(id_of(setup.release_id), setup.epoch)
        self._claim: asyncpg.Record | None = None
        self._entries: list[bytes] = []
        self._claims: list[Argument] = []
        self._people: dict[bytes, list[bytes]] = defaultdict(list)
        self._accounts: dict[bytes, int] = defaultdict(int)

    def meta(self) -> list[Argument]:
        """Return the fields of the meta key, flat."""
        setup = self.setup
        fields: dict[str, Argument] = {
            "opens_ms": setup.opens_ms,
            "closes_ms": setup.closes_ms,
            "person_limit": setup.person_limit,
            "account_limit": setup.account_limit,
            "seq": self.seq,
            "version": 0,
            "setup": setup.pack(),
        }
        return [part for field in fields.items() for part in field]

    async def add_booking(self, row: asyncpg.Record) -> None:
        """Take one booking; those of one claim come one after another."""
        if self._claim is None or row["id"] != self._claim["id"]:
            self._end_claim()
            self._claim = row
            if len(self._claims) >= 2 * _CHUNK:
                await self._hset(self._keys.claims, self._claims)
                self._claims = []
        status = Status.of(row["status"])
        person = row["person_id"].bytes
        number = row["waiting_position"] or row["place_no"] or 0
        self._entries.append(ENTRY.pack(person, row["ordinal"], number, status))
        if status in LIVE:
            place = number if status is Status.CONFIRMED else 0
            self._people[person].append(BOOKED.pack(row["ordinal"], place, row["id"].bytes))
            self._accounts[row["account_id"].bytes] += 1

    def _end_claim(self) -> None:
        claim = self._claim
        if claim is None:
            return
        head = CLAIM_HEAD.pack(
            claim["revision"],
            claim["fingerprint"],
            claim["account_id"].bytes,
            claim["seq"],
            to_ms(claim["decided_at"]),
        )
        self._claims += [claim["id"].bytes, head + b"".join(self._entries)]
        self._entries = []

    async def end_of_bookings(self) -> None:
        """Write what has been gathered of claims, people and accounts."""
        self._end_claim()
        await self._hset(self._keys.claims, self._claims)
        people: list[Argument] = [BALLAST_FIELD, BALLAST]
        people += [part for person, booked in self._people.items() for part in (person, b"".join(booked))]
        await self._hset(self._keys.people, people)
        accounts: list[Argument] = [BALLAST_FIELD, BALLAST]
        accounts += [part for count in self._accounts.items() for part in count]
        await self._hset(self._keys.accounts, accounts)

    async def add_pools(self, pools: list[asyncpg.Record], free_maps: dict[int, bytearray]) -> None:
        """Write the counts and the free map of each pool."""
        fields: list[Argument] = [BALLAST_FIELD, BALLAST]
        for pool in pools:
            free_map = free_maps[pool["ordinal"]]
            counts = PoolCounts(
                free=int.from_bytes(free_map, "big").bit_count(),
                capacity=pool["capacity"],
                waiting=pool["waiting"],
                waitlist_limit=pool["waitlist_limit"],
                pending=0,
                hint_byte=0,
                is_open=pool["state"] == "open",
            )
            fields += [pool["ordinal"], counts.pack()]
            key = self._keys.free_map(pool["ordinal"])
            await self._write(key, ["SET", key, bytes(free_map)])
        await self._hset(self._keys.pools, fields)

    async def _hset(self, key: str, fields: list[Argument]) -> None:
        for start in range(0, len(fields), 2 * _CHUNK):
            await self._write(key, ["HSET", key, *fields[start : start + 2 * _CHUNK]])

    async def _write(self, key: str, command: list[Argument]) -> None:
        self.loaded.add(key)
        await self.link.commands([command, ["EXPIRE", key, LOADING_EXPIRY_SECONDS]])
