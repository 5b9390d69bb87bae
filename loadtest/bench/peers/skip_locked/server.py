"""Gives each winner a row that nobody else has locked: `python -m loadtest.bench.peers.skip_locked.server`."""

from typing import TYPE_CHECKING, Final
from uuid import UUID

from loadtest.bench.peers.claims import ClaimBody
from loadtest.bench.peers.on_postgres import serve_on_postgres

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

_FREE: Final = """
SELECT place_no FROM peer_skip_locked.place WHERE pool_id = $1 AND holder_id IS NULL LIMIT $2 FOR UPDATE SKIP LOCKED
"""
_BOOK: Final = """
UPDATE peer_skip_locked.place SET holder_id = given.person_id, claim_id = $2, booked_at = now()
FROM unnest($3::integer[], $4::uuid[]) AS given (place_no, person_id)
WHERE place.pool_id = $1 AND place.place_no = given.place_no
"""
_FIND: Final = "SELECT pool_id FROM peer_skip_locked.place WHERE claim_id = $1 LIMIT 1"


async def take(connection: "PoolConnectionProxy[asyncpg.Record]", claim_id: UUID, claim: ClaimBody) -> UUID | None:
    """Take as many free places as there are people in the first pool that has them."""
    for pool_id in claim.choices:
        places = await connection.fetch(_FREE, pool_id, len(claim.people))
        if len(places) == len(claim.people):
            await connection.execute(_BOOK, pool_id, claim_id, [place["place_no"] for place in places], claim.people)
            return pool_id
    return None


if __name__ == "__main__":
    serve_on_postgres(take, _FIND)
