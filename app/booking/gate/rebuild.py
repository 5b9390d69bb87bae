"""Makes the state of a release anew from PostgreSQL, which is the truth.

Holding the release's lock alone: epoch + 1 and the identity of the server that is to hold the state are written, free
places are handed to whoever waits, everything is read and loaded under keys of the new epoch, which nobody reads yet.
After the commit one script puts the epoch in force. A claim that was admitted under the old epoch can no longer be
committed: its phone asks again and is judged by the new state.
"""

import asyncio
import struct
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

import asyncpg

from app.booking.gate.database import borrowed
from app.booking.gate.errors import NotInForce
from app.booking.gate.keys import BALLAST, BALLAST_FIELD, LOADING_EXPIRY_SECONDS, EpochKeys, meta_key
from app.booking.gate.link import ACTIVATE, Argument, Link, Links
from app.booking.gate.records import BOOKED, CLAIM_HEAD, ENTRY, PoolCounts, Status
from app.booking.gate.state import PoolSetup, Release, ReleaseSetup
from app.booking.rows import HOLDS_A_PLACE, LIVE, WAITING_POSITION_OF_ALL, release_lock
from app.core import metrics
from app.core.clock import to_ms
from app.core.ids import id_of
from app.core.problems import NotFound

_WAIT_FOR: Final = "SELECT set_config('lock_timeout', $1, true)"
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
SELECT pool.ordinal, array_agg(place.place_no) AS places
FROM place
JOIN pool ON pool.id = place.pool_id
WHERE pool.release_id = $1 AND place.lane = 'online'
  AND NOT EXISTS (SELECT FROM booking
                  WHERE booking.pool_id = place.pool_id AND booking.place_no = place.place_no
                    AND booking.status = 'confirmed')
GROUP BY pool.ordinal
"""
# A million rows are to be sorted in few runs. Given back with the transaction.
_MORE_MEMORY: Final = "SET LOCAL work_mem = '64MB'"
_STATUS_NUMBER: Final = " ".join(f"WHEN '{status.word}' THEN {status.value}" for status in Status)
# One statement for each hash, its rows in the order in which those of one field stand together. A row is one string of
# bytes, every row as long as every other: a million of them are unpacked with a fifth of the work that values take.
_CLAIMS: Final = f"""
SELECT uuid_send(claim.id) || uuid_send(claim.account_id) || int4send(claim.revision) || int8send(claim.seq)
       || timestamptz_send(claim.decided_at) || substr(claim.fingerprint || decode('0000000000000000', 'hex'), 1, 8)
       || uuid_send(booking.person_id) || int2send(pool.ordinal)
       || int4send(coalesce(waiting.position::integer, booking.place_no, 0))
       || int2send((CASE booking.status {_STATUS_NUMBER} END)::smallint)
FROM claim
JOIN booking ON booking.claim_id = claim.id
JOIN pool ON pool.id = booking.pool_id
LEFT JOIN (
    SELECT booking.id, {WAITING_POSITION_OF_ALL} AS position
    FROM booking
    JOIN pool ON pool.id = booking.pool_id
    WHERE pool.release_id = $1 AND booking.status = 'waitlisted'
) AS waiting ON waiting.id = booking.id
WHERE claim.release_id = $1 AND claim.state <> 'void'
ORDER BY claim.id, booking.position
"""  # noqa: S608 - our own words
_CLAIM_ROW: Final = struct.Struct(">16s16siqq8s16shih")
_PEOPLE: Final = f"""
SELECT uuid_send(booking.person_id) || int2send(pool.ordinal)
       || int4send(CASE WHEN {HOLDS_A_PLACE} THEN booking.place_no ELSE 0 END) || uuid_send(booking.claim_id)
FROM claim
JOIN booking ON booking.claim_id = claim.id
JOIN pool ON pool.id = booking.pool_id
WHERE claim.release_id = $1 AND {LIVE}
-- By the whole string, which begins with the person: by the person alone it would be read along an index, a page for
-- each of a million rows, which takes three times as long as sorting them.
ORDER BY 1
"""  # noqa: S608 - our own words
_PEOPLE_ROW: Final = struct.Struct(">16shi16s")
_ACCOUNTS: Final = f"""
SELECT uuid_send(claim.account_id) || int8send(count(*))
FROM claim
JOIN booking ON booking.claim_id = claim.id
WHERE claim.release_id = $1 AND {LIVE}
GROUP BY claim.account_id
"""  # noqa: S608 - our own words
_ACCOUNT_ROW: Final = struct.Struct(">16sq")
# A timestamptz is sent in microseconds since 2000.
_MS_FROM_1970_TO_2000: Final = 946_684_800_000
# Claims that PostgreSQL holds, and those of $2, which are on their way, that it does not hold yet.
_ACCOUNTED_FOR: Final = """
SELECT (SELECT count(*) FROM claim WHERE release_id = $1 AND state <> 'void')
     + (SELECT count(*) FROM unnest($2::uuid[]) AS pending (id)
        WHERE NOT EXISTS (SELECT FROM claim
                          WHERE claim.id = pending.id AND claim.release_id = $1 AND claim.state <> 'void')) AS claims,
       pg_postmaster_start_time() AS since
"""
_HIGHEST_SEQ: Final = "SELECT coalesce(max(seq), 0) FROM claim WHERE release_id = $1"
# Rows read, and fields written, at once: bounds memory here and each command's time in Redis.
_CHUNK: Final = 1_000
# Pools of which the numbers of all free places are read at once.
_POOLS_AT_ONCE: Final = 10


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


class Census(NamedTuple):
    """What a state in force knows: how many claims, and which of them are still on their way to PostgreSQL."""

    claims: int
    pending: Sequence[UUID]


async def take_census(link: Link, release: Release) -> Census:
    """Return what the state of a release knows at this moment."""
    keys = release.keys
    *_, both = await link.commands([["MULTI"], ["HLEN", keys.claims], ["ZRANGE", keys.pending, 0, -1], ["EXEC"]])
    claims, pending = cast("tuple[int, list[bytes]]", both)
    return Census(claims, [id_of(claim) for claim in pending])


async def accounted_for(
    database: asyncpg.Pool, release: Release, known: Census, *, timeout_seconds: float
) -> tuple[bool, datetime]:
    """Tell whether PostgreSQL, and what is on its way there, account for what a state knew; and since when it runs.

    They do not after PostgreSQL was restored from a back-up: epoch and identity are as they were then, and claims that
    were confirmed since would hear "yes" from Redis alone. Redis is asked first: what it knew by then, and did not call
    pending, PostgreSQL has. Raises the driver's errors.
    """
    async with borrowed(database, timeout_seconds=timeout_seconds) as connection:
        (row,) = await connection.fetch(_ACCOUNTED_FOR, release.release_id, known.pending)
    return known.claims <= cast("int", row["claims"]), cast("datetime", row["since"])


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
        await stack.enter_async_context(_one_at_a_time(connection, release_id, timeout_seconds=timeout_seconds))
        if not because.insist:
            async with links.lend() as link:
                present = await read_release(link, release_id)
            if present is not None and (because.epoch is None or present.epoch > because.epoch):
                row = await connection.fetchrow(_RELEASE, release_id)
                if row is not None and row["epoch"] == present.epoch and row["gate_identity"] == present.identity:
                    return present
        began_seconds = time.monotonic()
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
        metrics.REBUILDS.observe(time.monotonic() - began_seconds)
        if before is not None and int(cast("bytes", before)) < setup.epoch:
            old = EpochKeys(release_id, int(cast("bytes", before)))
            await link.commands([["UNLINK", *old.everything(len(setup.pools))]])
        return Release(setup, link.identity)


@asynccontextmanager
async def _one_at_a_time(
    connection: "asyncpg.pool.PoolConnectionProxy", release_id: UUID, *, timeout_seconds: float
) -> AsyncGenerator[None]:
    """Let the workers that found the state missing rebuild it once, not one after the other."""
    async with connection.transaction():
        # Whoever is at it may need as long as we may: longer than anybody waits for another lock. The server has to
        # know, for it does not notice while it waits that the connection is cut.
        await connection.execute(_WAIT_FOR, f"{timeout_seconds * 1_000:.0f}")
        # Outlasts the transaction.
        await connection.execute(_ONE_AT_A_TIME, release_id)
    try:
        yield
    finally:
        # A broken connection has given the lock back by itself.
        if not connection.is_closed():
            try:
                await connection.execute(_NEXT_PLEASE, release_id)
            except BaseException:
                # Nobody else gives back what a connection holds (see `database.leave_as_it_is`).
                connection.terminate()
                raise


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
    try:
        await connection.execute(_MORE_MEMORY)
        async for rows in _read(connection, _CLAIMS, release_id, _CLAIM_ROW):
            await loader.add_claims(rows)
        async for rows in _read(connection, _PEOPLE, release_id, _PEOPLE_ROW):
            await loader.add_people(rows)
        async for rows in _read(connection, _ACCOUNTS, release_id, _ACCOUNT_ROW):
            await loader.add_accounts(rows)
        free_maps = {pool["ordinal"]: bytearray(pool["highest"] // 8 + 1) for pool in pools}
        async for vacant in connection.cursor(_VACANT, release_id, prefetch=_POOLS_AT_ONCE):
            free_map = free_maps[vacant["ordinal"]]
            for number in cast("list[int]", vacant["places"]):
                # Redis counts bits from the most significant of each byte.
                free_map[number >> 3] |= 0x80 >> (number & 7)
        await loader.add_pools(pools, free_maps)
        await loader.end()
    finally:
        loader.give_up()
    return loader


# Values of some rows: ids as the 16 bytes that they are, and numbers.
_Rows = Iterator[tuple[Any, ...]]


async def _read(
    connection: "asyncpg.pool.PoolConnectionProxy", statement: str, release_id: UUID, form: struct.Struct
) -> AsyncGenerator[_Rows]:
    """Yield the rows of a statement that makes one string of bytes of each, some at a time."""
    cursor = await connection.cursor(statement, release_id)
    while found := await cursor.fetch(_CHUNK):
        packed = b"".join([row[0] for row in found])
        # One row that is longer would make rubbish of all behind it. A null would not get as far as here.
        assert len(packed) == len(found) * form.size  # noqa: S101 - statement and form stand side by side
        yield form.iter_unpack(packed)


class _Loader:
    """Writes the state of a new epoch to Redis, in chunks, under keys that nobody reads yet.

    While Redis takes one chunk, the next is read and packed. Nothing is kept until the end: a release may have a
    million places, and PostgreSQL ends a transaction in which nothing happens for long.
    """

    def __init__(self, link: Link, setup: ReleaseSetup, *, seq: int) -> None:
        self.link = link
        self.identity = link.identity
        self.setup = setup
        self.seq = seq
        self.loaded: set[str] = set()
        self._keys = EpochKeys(id_of(setup.release_id), setup.epoch)
        # Fields and values, flat. To the last value of each there may be more in the next row.
        self._claims: list[bytes] = []
        self._people: list[bytes] = [BALLAST_FIELD, BALLAST]
        self._accounts: list[bytes] = [BALLAST_FIELD, BALLAST]
        self._writing: asyncio.Task[object] | None = None

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

    async def add_claims(self, rows: _Rows) -> None:
        """Take bookings; those of one claim come one after another."""
        parts = self._claims
        for claim_id, account, revision, seq, decided_at, fingerprint, person, ordinal, number, status in rows:
            entry = ENTRY.pack(person, ordinal, number, status)
            if parts and parts[-2] == claim_id:
                parts[-1] += entry
            else:
                decided_ms = (decided_at + 500) // 1_000 + _MS_FROM_1970_TO_2000
                head = CLAIM_HEAD.pack(revision, fingerprint, account, seq, decided_ms)
                parts += (claim_id, head + entry)
        await self._write_complete(self._keys.claims, parts)

    async def add_people(self, rows: _Rows) -> None:
        """Take live bookings; those of one person come one after another."""
        parts = self._people
        for person, ordinal, place, claim_id in rows:
            booked = BOOKED.pack(ordinal, place, claim_id)
            if parts[-2] == person:
                parts[-1] += booked
            else:
                parts += (person, booked)
        await self._write_complete(self._keys.people, parts)

    async def add_accounts(self, rows: _Rows) -> None:
        """Take how many live bookings each account has."""
        for account, count in rows:
            self._accounts += (account, b"%d" % count)
        await self._write_complete(self._keys.accounts, self._accounts)

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
        await self._write(self._keys.pools, ["HSET", self._keys.pools, *fields])

    async def end(self) -> None:
        """Write what is left of claims, people and accounts, and wait until Redis has everything."""
        for key, parts in (
            (self._keys.claims, self._claims),
            (self._keys.people, self._people),
            (self._keys.accounts, self._accounts),
        ):
            if parts:
                await self._write(key, ["HSET", key, *parts])
        await self._written()

    def give_up(self) -> None:
        """Wait for nothing any more. After `end`, there is nothing to be given up."""
        if self._writing is not None:
            self._writing.cancel()

    async def _write_complete(self, key: str, parts: list[bytes]) -> None:
        """Write, and forget, as many whole chunks as there are before the last field."""
        while len(parts) > 2 * _CHUNK:
            await self._write(key, ["HSET", key, *parts[: 2 * _CHUNK]])
            del parts[: 2 * _CHUNK]

    async def _write(self, key: str, command: list[Argument]) -> None:
        """Have something written while the caller goes on; what was under way until now is there first."""
        commands = [command]
        if key not in self.loaded:
            self.loaded.add(key)
            commands.append(["EXPIRE", key, LOADING_EXPIRY_SECONDS])
        await self._written()
        self._writing = asyncio.create_task(self.link.commands(commands))

    async def _written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing
