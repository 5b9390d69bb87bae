"""Towns of every size for the bench, from 300 places to a million, each in a database of its own.

A million bookings come into the tables much as a back-up does: rows first, then the indexes and the references, which
are checked over all of them. Afterwards every one that was there before is there again.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg
import httpx2
import msgspec

from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of
from app.cli import surroundings
from app.core.clock import to_ms
from app.core.settings import ENVIRONMENT_PREFIX
from loadtest.bench.machine import OTHER_CORE, SERVER_CORE, CannotBenchError, family_of, pin
from loadtest.bench.stage import Server, Stage
from loadtest.bench.town import CHOICES, TOWN_POOLS, BenchRelease, publish, put_claim
from loadtest.claim_ids import new_claim_id

Say = Callable[[str], None]

# Seeded by the operating system, so that no two runs, and no two laps of one, have a parent in common.
_STRANGERS: Final = random.Random()

# As many pools as the API lets a release have.
_POOLS_MAX: Final = 200
_PLACES_EACH_MIN: Final = 50
_ID_BITS: Final = 128
# Bookings written in one statement: some seconds, after which there is progress to be told.
_CHUNK: Final = 100_000
# A rebuild of a million places, many times over.
_IN_FORCE_SECONDS_MAX: Final = 300.0
_LOOK_EVERY_SECONDS: Final = 0.02
# The bench asks as one address, and asks anew for what the service would repeat from memory. A sweep that falls into a
# lap would be counted as work on its claims.
_FOR_THE_BENCH: Final = {
    ENVIRONMENT_PREFIX + "SWEEP_INTERVAL_MS": "60000",
    ENVIRONMENT_PREFIX + "RATE_LIMIT_PER_MINUTE": "1000000",
    ENVIRONMENT_PREFIX + "CATALOGUE_AGE_MS": "0",
    ENVIRONMENT_PREFIX + "AVAILABILITY_AGE_MS": "0",
}

# What is taken away before a million rows are written to a table, and how it is made again: indexes and references to
# other tables. Primary keys stay, for the others refer to them. So does the exclusion constraint: made in one go, the
# pages of its index are full, and every other winner would split one; grown row by row, they have room.
_AROUND: Final = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) AS away,
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) AS again,
       true AS is_reference
FROM pg_constraint
WHERE conrelid IN ('claim'::regclass, 'booking'::regclass) AND contype = 'f'
UNION ALL
SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid), false
FROM pg_index
WHERE indrelid IN ('claim'::regclass, 'booking'::regclass)
  AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
"""
# Ids of claims and bookings grow, as phones and servers choose them (UUIDv7); people and accounts signed up in another
# order than that in which they claimed.
_BOOK: Final = """
WITH taken AS MATERIALIZED (
    SELECT place.pool_id, place.place_no, pool.during, $4::bigint + row_number() OVER (ORDER BY ordinal, place_no) AS n
    FROM pool JOIN place ON place.pool_id = pool.id
    WHERE pool.release_id = $1 AND pool.ordinal >= $2 AND pool.ordinal < $3
), named AS MATERIALIZED (
    SELECT taken.*, (lpad(to_hex(1763000000000 + n), 12, '0') || '70008' || substr(md5('claim' || n), 1, 15))::uuid
               AS claim_id
    FROM taken
), claims AS (
    INSERT INTO claim (id, release_id, account_id, acted_by, epoch, seq, state, rules_version, request, fingerprint,
                       decided_at)
    SELECT claim_id, $1, account.id, account.id, 0, n, 'confirmed', 'bench', '{}', decode('0011223344556677', 'hex'),
           now() - interval '1 day' + n * interval '1 ms'
    FROM named, CAST(md5('account' || n % $5) AS uuid) AS account (id)
)
INSERT INTO booking (id, claim_id, position, person_id, pool_id, place_no, during, status, rules_version)
SELECT (lpad(to_hex(1763000000000 + n), 12, '0') || '70018' || substr(md5('booking' || n), 1, 15))::uuid, claim_id, 0,
       md5('person' || n)::uuid, pool_id, place_no, during, 'confirmed', 'bench'
FROM named
"""


@dataclass(frozen=True, slots=True)
class City:
    """A town of some size: its database, its server, and one release that holds nearly all of its places.

    The first `booked_pools` of the release are booked to the last place; the others stand open, `open_each` places in
    each.
    """

    places: int
    accounts: int
    dsn: str
    server: Server
    release: BenchRelease
    booked_pools: int
    open_each: int

    @asynccontextmanager
    async def database(self) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
        """Connect to its database, as long as the context lasts."""
        async with _connected(self.dsn) as connection:
            yield connection


@asynccontextmanager
async def _connected(dsn: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def found_city(stage: Stage, *, places: int, accounts: int, open_places: int, say: Say) -> City:
    """Make a city with so many places, booked by so many accounts, and `open_places` more that stand open.

    A town of 300 places has the pools of the demonstration and no open ones; it opens other releases. The state of the
    release in Redis is for whoever asks first to make.
    """
    booked, open_each = _capacities(places, open_places)
    dsn = await _new_database(stage, f"city_{places}")
    server = await stage.serve(given={surroundings.DATABASE_URL: dsn, **_FOR_THE_BENCH})
    async with _connected(dsn) as database:
        with _both_cores(stage):
            release = await _publish_booked(database, booked, open_each, accounts, say)
    return City(sum(booked), accounts, dsn, server, release, len(booked), open_each)


async def publish_city(
    database: "asyncpg.Connection[asyncpg.Record]", *, places: int, accounts: int, open_places: int, say: Say
) -> BenchRelease:
    """Publish the release of a city in a database whose tables of bookings are empty; the open pools are the last."""
    booked, open_each = _capacities(places, open_places)
    return await _publish_booked(database, booked, open_each, accounts, say)


async def _publish_booked(
    database: "asyncpg.Connection[asyncpg.Record]", booked: Sequence[int], open_each: int, accounts: int, say: Say
) -> BenchRelease:
    async with database.transaction():
        release = await publish(database, [*booked, *[open_each] * (len(TOWN_POOLS) if open_each else 0)])
        # A draft until it is booked: the worker makes the state of every release that it sees, and would make this one
        # too early.
        await database.execute(
            "UPDATE release SET state = 'draft', rules_version = NULL WHERE id = $1", release.release_id
        )
    await _book(database, release, booked, accounts, say)
    await database.execute(
        "UPDATE release SET state = 'published', rules_version = 'bench' WHERE id = $1", release.release_id
    )
    return release


def _capacities(places: int, open_places: int) -> tuple[list[int], int]:
    """Return the capacities of the pools that are to be booked, and the capacity of each pool that is to stand open."""
    if places == sum(TOWN_POOLS):
        return list(TOWN_POOLS), 0
    pools = min(max(places // _PLACES_EACH_MIN, 1), _POOLS_MAX - len(TOWN_POOLS))
    each, over = divmod(places, pools)
    return [each + (ordinal < over) for ordinal in range(pools)], -(-open_places // len(TOWN_POOLS))


async def _new_database(stage: Stage, name: str) -> str:
    """Make an empty database beside the stage's own, and return its address."""
    async with stage.database() as database:
        await database.execute(f"CREATE DATABASE {name}")
    address, _, query = stage.engines.database_dsn.partition("?")
    return f"{address.rpartition('/')[0]}/{name}?{query}"


@contextmanager
def _both_cores(stage: Stage) -> Generator[None]:
    """Give PostgreSQL both cores while nothing is measured."""
    postmaster = stage.engines.postgres_pid
    assert postmaster is not None  # noqa: S101 - it runs as long as the stage stands
    pin(family_of(postmaster), {SERVER_CORE, OTHER_CORE})
    try:
        yield
    finally:
        pin(family_of(postmaster), {OTHER_CORE})


async def _book(
    database: "asyncpg.Connection[asyncpg.Record]",
    release: BenchRelease,
    booked: Sequence[int],
    accounts: int,
    say: Say,
) -> None:
    """Book the first pools of a release to the last place, and leave the tables as if all that were long ago."""
    began_at = time.monotonic()
    around = await database.fetch(_AROUND)
    # References first: they hold on to nothing. They come back last, when there is something to look rows up by.
    for part in sorted(around, key=_is_no_reference):
        await database.execute(part["away"])
    written = 0
    for first, last in _chunks(booked):
        await database.execute(_BOOK, release.release_id, first, last, written, accounts, timeout=None)
        written += sum(booked[first:last])
        if written > _CHUNK:
            say(f"  {written:,} of {sum(booked):,} places booked after {time.monotonic() - began_at:.0f} s")
    say("  making indexes and references anew")
    await database.execute("SET maintenance_work_mem = '256MB'")
    for part in sorted(around, key=_is_no_reference, reverse=True):
        await database.execute(part["again"], timeout=None)
    # By name: of a condition that it has read back, PostgreSQL writes casts in another place.
    if {part["away"] for part in await database.fetch(_AROUND)} != {part["away"] for part in around}:
        raise CannotBenchError("The tables did not get back the indexes and constraints that they had.")
    # Neither is to happen in the middle of a lap.
    for table in ("claim", "booking", "place", "pool", "release"):
        await database.execute(f"VACUUM (ANALYZE) {table}", timeout=None)
        await database.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")


def _is_no_reference(part: asyncpg.Record) -> bool:
    return not part["is_reference"]


def _chunks(booked: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Yield pools, first and behind the last, that have so many places together as are written in one statement."""
    first, places = 0, 0
    for ordinal, capacity in enumerate(booked):
        places += capacity
        if places >= _CHUNK or ordinal == len(booked) - 1:
            yield first, ordinal + 1
            first, places = ordinal + 1, 0


async def in_force(city: City, release: BenchRelease) -> float:
    """Ask what is left of a release until there is an answer; return how many seconds that took.

    Whoever asks first has the state made. Raises `CannotBenchError`.
    """
    path = f"{city.server.address}/v1/releases/{release.release_id}/availability"
    began_at = time.monotonic()
    async with httpx2.AsyncClient(timeout=_IN_FORCE_SECONDS_MAX) as client:
        while not (answer := await client.get(path)).is_success:
            if time.monotonic() - began_at > _IN_FORCE_SECONDS_MAX:
                raise CannotBenchError(f"The release did not come into force: {answer.text}")
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
    return time.monotonic() - began_at


def claims_of_strangers(signer: PassSigner, release: BenchRelease, wishes: Iterable[Sequence[UUID]]) -> list[bytes]:
    """Return the claim of another parent for each of these wishes, as whole HTTP requests (see `town.claim_requests`).

    Never the same parents twice: whoever is booked already would clash with themselves.
    """
    pools = mask_of(set(range(len(release.pool_ids))))
    expires_ms = to_ms(datetime.now(UTC) + timedelta(days=2))
    requests: list[bytes] = []
    for choices in wishes:
        account, person = (UUID(int=_STRANGERS.getrandbits(_ID_BITS)) for _ in range(2))
        contents = Pass.of(release.release_id, account, expires_ms, (PassPerson(person.bytes, pools, 0),))
        body = msgspec.json.encode({"release": release.release_id, "people": [person], "choices": choices})
        requests.append(put_claim(UUID(new_claim_id()), signer.sign(contents), body))
    return requests


def vain_wishes(city: City, count: int) -> Iterable[Sequence[UUID]]:
    """Yield wishes for pools that are booked to the last place."""
    booked = city.release.pool_ids[: city.booked_pools]
    return (_STRANGERS.sample(booked, min(CHOICES, len(booked))) for _ in range(count))


def wishes_that_come_true(pools: Sequence[tuple[UUID, int]]) -> list[Sequence[UUID]]:
    """Return as many wishes as these pools have places left, in any order, of which each will get its first choice.

    As many put a pool first as it has places, so nobody has to take their second choice from somebody else.
    """
    first_choices = [pool_id for pool_id, places in pools for _ in range(places)]
    _STRANGERS.shuffle(first_choices)
    pool_ids = [pool_id for pool_id, _ in pools]
    wishes: list[Sequence[UUID]] = []
    for first in first_choices:
        others = [pool_id for pool_id in _STRANGERS.sample(pool_ids, min(CHOICES, len(pool_ids))) if pool_id != first]
        wishes.append([first, *others[: CHOICES - 1]])
    return wishes
