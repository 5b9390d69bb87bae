"""Single steps of a claim's life, for tests that stop between two of them."""

import asyncio
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.claims import service as claims
from app.booking.gate.admission import Judged
from app.booking.gate.desk import Request, _pass_text
from app.booking.gate.ledger import Verdict, Winner
from app.booking.gate.reading import read_claim
from app.core.clock import Clock
from app.core.db import transaction
from tests.booking.gate.builders import Phone, Said, Worker
from tests.booking.gate.waits import until


async def admit(worker: Worker, request: Request) -> Winner:
    """Go as far as the script and no further, as a worker that is killed right after."""
    claim_id = UUID(request.path.rpartition("/")[2])
    body = read_claim(request.body)
    room = await worker.gate._rooms.room(body.release)
    contents = worker.desk._signer.verify(_pass_text(request))
    admission, admitted = room.admission, list[Winner]()
    see_through = admission._see_through

    def kept_from_the_ledger(winner: Winner) -> asyncio.Future[Verdict]:
        admitted.append(winner)
        return asyncio.get_running_loop().create_future()

    admission._see_through = kept_from_the_ledger
    try:
        order = worker.desk._orders.carefully(claim_id.bytes, body, request.body, contents, room.release)
        judged = await admission.admit(order, request.has_hung_up)
    finally:
        admission._see_through = see_through
    assert isinstance(judged, Judged)
    assert judged.answer.code in "TW"
    (winner,) = admitted
    return winner


async def give_back(engine: AsyncEngine, phone: Phone, claim_id: UUID) -> list[UUID]:
    """Give a whole claim back in PostgreSQL, as the API does; return the claims that the gate is to hear of."""
    async with transaction(engine) as session:
        _, changed = await claims.give_back(
            session,
            claim_id=claim_id,
            account_id=phone.account,
            only_booking_id=None,
            now=Clock().now(),
            notice=timedelta(hours=1),
        )
    return changed


async def ask_until_decided(worker: Worker, phone: Phone, *ordinals: int, waitlist: bool = False) -> Said:
    """Ask with one claim id for as long as the answer says to come again, as a phone does."""
    request = phone.claim(*ordinals, waitlist=waitlist)
    said = [await worker.ask(request)]

    async def decided() -> bool:
        if said[-1].word in {"rebuilding", "pending", "busy", "gate_unreachable"}:
            said.append(await worker.ask(request))
            return False
        return True

    await until(decided)
    return said[-1]
