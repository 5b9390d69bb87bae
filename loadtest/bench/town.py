"""Releases and parents for the bench, written straight into PostgreSQL and signed with the server's own key.

A release here is a real one: pools with places as rows, bookings with claims, and a state in Redis that the service
builds from them. Only the way in is shorter than over HTTP, because a million parents have to fit into a minute.
"""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of
from app.core.clock import to_ms
from app.core.ids import new_id

_OPEN_SINCE: Final = timedelta(hours=1)
_OPEN_FOR: Final = timedelta(days=7)
_FIRST_SESSION: Final = timedelta(days=14)
_ID_BITS: Final = 128
# A claim names its first wish and two that would do as well.
CHOICES: Final = 3

_BOOK: Final = """
WITH place_numbered AS (
    SELECT place.pool_id, place.place_no, pool.during, row_number() OVER (ORDER BY pool.ordinal, place_no) AS n
    FROM place JOIN pool ON pool.id = place.pool_id
    WHERE pool.release_id = $1
    LIMIT $2
), numbered AS (
    SELECT *, md5('claim' || $1::text || n)::uuid AS claim_id,
           md5('account' || $1::text || (n - 1) % $3)::uuid AS account_id,
           md5('person' || $1::text || n)::uuid AS person_id
    FROM place_numbered
), claims AS (
    INSERT INTO claim (id, release_id, account_id, acted_by, epoch, seq, state, rules_version, request, fingerprint,
                       decided_at)
    SELECT claim_id, $1, account_id, account_id, 0, n, 'confirmed', 'bench', '{}', decode('00', 'hex'), now()
    FROM numbered
)
INSERT INTO booking (id, claim_id, position, person_id, pool_id, place_no, during, status, rules_version)
SELECT md5('booking' || $1::text || n)::uuid, claim_id, 0, person_id, pool_id, place_no, during, 'confirmed', 'bench'
FROM numbered
"""


@dataclass(frozen=True, slots=True)
class BenchRelease:
    """A published release that is open. Pools stand in the order of their ordinals."""

    release_id: UUID
    pool_ids: tuple[UUID, ...]
    places: int


# The release of the town's demonstration: 14 sessions, 300 places.
TOWN_POOLS: Final = (*[35] * 3, *[18] * 8, *[17] * 3)


async def make_town_release(database: "asyncpg.Connection[asyncpg.Record]") -> BenchRelease:
    """Publish a release as a station opens it: 300 places in 14 pools."""
    return await publish(database, TOWN_POOLS)


async def make_release(database: "asyncpg.Connection[asyncpg.Record]", *, pools: int, places_each: int) -> BenchRelease:
    """Publish a release that is open now: so many pools, all at different hours, with so many places each."""
    return await publish(database, [places_each] * pools)


async def publish(database: "asyncpg.Connection[asyncpg.Record]", capacities: Sequence[int]) -> BenchRelease:
    """Publish a release that is open now, with pools of so many places, all at different hours."""
    now = datetime.now(UTC)
    release_id = new_id()
    pool_ids = tuple(new_id() for _ in capacities)
    async with database.transaction():
        await database.execute(
            "INSERT INTO release (id, title, state, opens_at, closes_at, person_limit, account_limit, rules_version)"
            " VALUES ($1, 'bench', 'published', $2, $3, 3, 6, 'bench')",
            release_id,
            now - _OPEN_SINCE,
            now + _OPEN_FOR,
        )
        await database.executemany(
            "INSERT INTO pool (id, release_id, ordinal, kind, title, during) VALUES ($1, $2, $3, 'session', $4, "
            "tstzrange($5, $6))",
            [
                (
                    pool_id,
                    release_id,
                    ordinal,
                    f"bench {ordinal}",
                    now + _FIRST_SESSION + ordinal * timedelta(hours=1),
                    now + _FIRST_SESSION + ordinal * timedelta(hours=1) + timedelta(minutes=50),
                )
                for ordinal, pool_id in enumerate(pool_ids)
            ],
        )
        await database.execute(
            "INSERT INTO place (pool_id, place_no) SELECT pool, n FROM unnest($1::uuid[], $2::integer[]) "
            "AS made (pool, capacity), generate_series(1, capacity) AS n",
            pool_ids,
            capacities,
        )
    return BenchRelease(release_id, pool_ids, sum(capacities))


async def book_places(
    database: "asyncpg.Connection[asyncpg.Record]", release: BenchRelease, *, places: int, accounts: int
) -> None:
    """Book the first places of a release, each for a person of its own, spread over so many accounts."""
    await database.execute(_BOOK, release.release_id, places, accounts, timeout=None)
    await database.execute("ANALYZE claim, booking, place")


def claim_requests(
    signer: PassSigner, release: BenchRelease, *, count: int, seed: int, choices: int = CHOICES
) -> list[bytes]:
    """Return whole HTTP requests: each the claim of another parent, for one child, with a pass of its own.

    The same seed gives the same parents. The headers are those that a mini-program on a phone sends.
    """
    drawn = random.Random(seed)
    wanted = min(choices, len(release.pool_ids))
    pools = mask_of(set(range(len(release.pool_ids))))
    expires_ms = to_ms(datetime.now(UTC) + timedelta(days=2))
    requests: list[bytes] = []
    for _ in range(count):
        account, person, claim = (UUID(int=drawn.getrandbits(_ID_BITS)) for _ in range(3))
        contents = Pass.of(release.release_id, account, expires_ms, (PassPerson(person.bytes, pools, 0),))
        body = msgspec.json.encode(
            {
                "release": release.release_id,
                "people": [person],
                "choices": drawn.sample(release.pool_ids, wanted),
            }
        )
        requests.append(put_claim(claim, signer.sign(contents), body))
    return requests


def put_claim(claim_id: UUID, pass_text: str, body: bytes) -> bytes:
    """Return the HTTP request that a phone sends to claim."""
    head = (
        f"PUT /v1/claims/{claim_id} HTTP/1.1\r\n"
        "Host: clocktower.test\r\n"
        f"Authorization: Pass {pass_text}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def poll_requests(release: BenchRelease) -> list[bytes]:
    """Return the HTTP request that asks what is left of a release."""
    path = f"/v1/releases/{release.release_id}/availability"
    return [f"GET {path} HTTP/1.1\r\nHost: clocktower.test\r\n\r\n".encode("ascii")]


def as_replay(requests: Sequence[bytes]) -> bytes:
    """Return requests in one piece, as replay.lua reads them: each behind its length (4 bytes, little-endian)."""
    return b"".join(struct.pack("<I", len(request)) + request for request in requests)
