"""Compares what PostgreSQL holds of a release with what the gate says of it."""

import asyncio
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.gate import Gate

# In the middle of a rush the two are read at different instants; at rest they agree at once.
_READINGS: Final = 5
_BETWEEN_READINGS_SECONDS: Final = 0.4

_COUNTS: Final = text("""
SELECT release.title, release.epoch,
       (SELECT count(*) FROM place JOIN pool ON pool.id = place.pool_id
        WHERE pool.release_id = release.id AND place.lane = 'online') AS places,
       (SELECT count(*) FROM booking JOIN pool ON pool.id = booking.pool_id
        JOIN place ON place.pool_id = booking.pool_id AND place.place_no = booking.place_no
        WHERE pool.release_id = release.id AND booking.status = 'confirmed' AND place.lane = 'online') AS held,
       (SELECT count(*) FROM booking JOIN pool ON pool.id = booking.pool_id
        WHERE pool.release_id = release.id AND booking.status = 'waitlisted') AS waiting
FROM release WHERE release.id = :release_id AND release.state = 'published'
""")


@dataclass(frozen=True, slots=True)
class Side:
    """What one of the two says."""

    epoch: int
    free: int
    held: int
    waiting: int
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides at one time. `gate` is None where the gate has no state in force, which the next claim mends."""

    title: str
    database: Side
    gate: Side | None

    @property
    def agrees(self) -> bool:
        """Tell whether both say the same, pending claims settled."""
        return self.gate is None or self.gate == self.database


async def compare(engine: AsyncEngine, gate: Gate, release_id: UUID) -> Comparison | None:
    """Compare once. None where there is no such published release."""
    async with engine.connect() as connection:
        row = (await connection.execute(_COUNTS, {"release_id": release_id})).one_or_none()
    if row is None:
        return None
    counts = await gate.counts(release_id)
    return Comparison(
        row.title,
        Side(row.epoch, row.places - row.held, row.held, row.waiting),
        None
        if counts is None
        else Side(counts["epoch"], counts["free"], counts["held"], counts["waiting"], counts["pending"]),
    )


async def compare_at_rest(engine: AsyncEngine, gate: Gate, release_id: UUID) -> Comparison | None:
    """Compare until both agree, a few times at most; a difference that stays is one."""
    comparison = await compare(engine, gate, release_id)
    for _ in range(_READINGS - 1):
        if comparison is None or comparison.agrees:
            break
        await asyncio.sleep(_BETWEEN_READINGS_SECONDS)
        comparison = await compare(engine, gate, release_id)
    return comparison
