"""Lets the feature that stands in front of a pool say what the pool is about, without booking knowing that feature."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.booking.models import Pool


class PoolDetails(NamedTuple):
    """What people want to know before they choose: the room within the station, and what will happen there."""

    room: str = ""
    summary: str = ""


DetailsOf = Callable[[AsyncSession, Sequence[UUID]], Awaitable[Mapping[UUID, PoolDetails]]]

_BY_KIND: Final[dict[str, DetailsOf]] = {}


def tell_details(kind: str, details_of: DetailsOf) -> None:
    """Have `details_of` asked, in one statement, about the pools of a kind. A feature calls this when imported."""
    _BY_KIND[kind] = details_of


async def details_of(db: AsyncSession, pools: Iterable[Pool]) -> dict[UUID, PoolDetails]:
    """Return the details of those pools that have some: one round trip for each kind among them."""
    by_kind: defaultdict[str, list[UUID]] = defaultdict(list)
    for pool in pools:
        by_kind[pool.kind].append(pool.id)
    told: dict[UUID, PoolDetails] = {}
    for kind, pool_ids in by_kind.items():
        if kind in _BY_KIND:
            told.update(await _BY_KIND[kind](db, pool_ids))
    return told
