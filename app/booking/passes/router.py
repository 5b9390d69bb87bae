"""Paths of the passes."""

from datetime import timedelta
from uuid import UUID

from fastapi import Request

from app.booking.gate.errors import DuplicatePerson
from app.booking.gate.passes import PassSigner
from app.booking.passes.errors import UnknownPerson
from app.booking.passes.schemas import PassPersonView, PassRequest, PassResponse, RefusedPool
from app.booking.passes.service import issue_pass
from app.core.auth import Caller
from app.core.clock import Clock
from app.core.openapi import problems
from app.core.problems import NotAuthenticated, NotFound, TokenExpired
from app.core.settings import Settings
from app.core.web.routing import ApiRouter, keeps_no_answer
from app.core.web.transactions import Read

router = ApiRouter(prefix="/v1/releases", tags=["passes"])


@router.post(
    "/{release_id}/pass",
    summary="Fetch a pass",
    responses=problems(NotAuthenticated, TokenExpired, NotFound, UnknownPerson, DuplicatePerson),
)
@keeps_no_answer
async def fetch_pass(release_id: UUID, body: PassRequest, caller: Caller, db: Read, request: Request) -> PassResponse:
    """Ask every slow question about a claim before the opening: age on the day, residence, consent.

    The answers are signed; at the second of the opening only the signature is checked. Nothing is stored, so it can be
    fetched again at any time, also after the opening.
    """
    clock: Clock = request.app.state.clock
    settings: Settings = request.app.state.settings
    signer: PassSigner = request.app.state.pass_signer
    now = clock.now()
    issued = await issue_pass(
        db,
        signer=signer,
        account_id=caller.account_id,
        release_id=release_id,
        person_ids=body.people,
        now=now,
        lifetime=timedelta(hours=settings.pass_hours),
    )
    return PassResponse(
        pass_=issued.text,
        expires_at=issued.expires_at,
        opens_at=issued.opens_at,
        server_time=now,
        people=[
            PassPersonView(
                id=person.id,
                pools=list(person.pools),
                refused=[RefusedPool(pool=pool, code=why.value) for pool, why in person.refused],
                delay_s=person.delay_s,
            )
            for person in issued.people
        ],
    )
