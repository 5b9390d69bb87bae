"""What becomes of the places of somebody who is erased: they are given back with the person, or not at all."""

from datetime import datetime
from functools import partial
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.family.service import WhenErased
from app.booking.claims import service
from app.booking.gate.gate import Gate
from app.core.db import after_commit


def giving_up_places(gate: Gate) -> WhenErased:
    """Return what the family calls in the transaction that erases a person; `gate` hears of it once that is committed.

    Places that are not handed over are free again from then on.
    """

    async def give_up(db: AsyncSession, *, person_id: UUID, now: datetime) -> None:
        for release_id, changed in (await service.give_up_places(db, person_id=person_id, now=now)).items():
            after_commit(db, partial(gate.settle, release_id, changed))

    return give_up
