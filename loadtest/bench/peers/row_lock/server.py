"""Counts places down in one row for each pool: `python -m loadtest.bench.peers.row_lock.server`."""

from typing import TYPE_CHECKING, Final
from uuid import UUID

from loadtest.bench.peers.claims import ClaimBody
from loadtest.bench.peers.on_postgres import serve_on_postgres

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

# A row that has too few left is neither changed nor locked, so those who are refused do not wait for one another.
_COUNT_DOWN: Final = """
UPDATE peer_row_lock.pool_counter SET places_left = places_left - $2 WHERE id = $1 AND places_left >= $2 RETURNING id
"""
_BOOK: Final = """
INSERT INTO peer_row_lock.booking (claim_id, pool_id, person_id) SELECT $1, $2, unnest($3::uuid[])
"""
_FIND: Final = "SELECT pool_id FROM peer_row_lock.booking WHERE claim_id = $1 LIMIT 1"


async def take(connection: "PoolConnectionProxy[asyncpg.Record]", claim_id: UUID, claim: ClaimBody) -> UUID | None:
    """Count down the first pool that has enough left, and book."""
    for pool_id in claim.choices:
        if await connection.fetchval(_COUNT_DOWN, pool_id, len(claim.people)):
            await connection.execute(_BOOK, claim_id, pool_id, claim.people)
            return pool_id
    return None


if __name__ == "__main__":
    serve_on_postgres(take, _FIND)
