"""Paths of decided claims. Making a claim, and asking for one with a pass, is the gate's."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from fastapi import Request
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncSession

from app.booking.claims import service
from app.booking.claims.errors import TooLateToCancel
from app.booking.claims.queries import ClaimRow
from app.booking.claims.schemas import ClaimList, ClaimResponse
from app.booking.gate.errors import GateUnreachable, PassInvalid, Rebuilding
from app.booking.gate.gate import Gate
from app.booking.gate.wire import ClaimView, PendingView
from app.core.auth import Caller
from app.core.db import after_commit, repeated_on_deadlock
from app.core.openapi import problems
from app.core.pages import Cursor, Limit, bad_cursor, page_of, read_cursor, write_cursor
from app.core.problems import NotAuthenticated, NotFound, TokenExpired
from app.core.settings import Settings
from app.core.web.routing import ApiRouter, keeps_no_answer
from app.core.web.transactions import Read

router = ApiRouter(prefix="/v1", tags=["claims"])

_SIGNED_IN = (NotAuthenticated, TokenExpired)


def _ref(kind: type[Struct]) -> dict[str, str]:
    # The gate describes its own bodies, see `gate_document`.
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


@router.get("/me/claims", summary="My claims", responses=problems(*_SIGNED_IN))
async def my_claims(caller: Caller, db: Read, cursor: Cursor = None, limit: Limit = 20) -> ClaimList:
    """List the account's claims, newest first, with the present position of those who wait."""
    found = await service.own_claims(db, account_id=caller.account_id, before=_key_in(cursor), limit=limit + 1)
    items, next_cursor = page_of(found, limit=limit, cursor_of=_cursor_of)
    return ClaimList(items=[ClaimResponse.of(claim) for claim in items], next=next_cursor)


@router.get(
    "/claims/{claim_id}",
    summary="Did I get it?",
    responses={
        **problems(*_SIGNED_IN, PassInvalid, NotFound, Rebuilding, GateUnreachable),
        202: {
            "description": "With a pass: waiting, or not known yet.",
            "content": {"application/json": {"schema": {"anyOf": [_ref(ClaimView), _ref(PendingView)]}}},
        },
    },
    # Beside the token, which FastAPI finds in the signature.
    openapi_extra={"security": [{"Pass": []}]},
)
async def read_claim(claim_id: UUID, caller: Caller, db: Read) -> ClaimResponse:
    """Look a claim up in the database. With `Authorization: Pass …` the gate answers instead, cheaper and sooner."""
    return ClaimResponse.of(await service.own_claim(db, claim_id=claim_id, account_id=caller.account_id))


@router.delete(
    "/claims/{claim_id}", summary="Give a whole claim back", responses=problems(*_SIGNED_IN, NotFound, TooLateToCancel)
)
@keeps_no_answer
async def give_claim_back(claim_id: UUID, caller: Caller, request: Request) -> ClaimResponse:
    """Give every place of a claim back. Whoever waits first gets it in the same instant. Again changes nothing."""

    async def whole_claim(db: AsyncSession) -> ClaimResponse:
        return await _give_back(db, request, claim_id=claim_id, account_id=caller.account_id, only_booking_id=None)

    return await _unless_deadlocked(request, whole_claim)


@router.delete(
    "/bookings/{booking_id}",
    summary="Give one person's place back",
    responses=problems(*_SIGNED_IN, NotFound, TooLateToCancel),
)
@keeps_no_answer
async def give_booking_back(booking_id: UUID, caller: Caller, request: Request) -> ClaimResponse:
    """Give one person's place back and keep the others of the claim. Again changes nothing."""

    async def one_booking(db: AsyncSession) -> ClaimResponse:
        claim_id = await service.own_claim_of_booking(db, booking_id=booking_id)
        return await _give_back(
            db, request, claim_id=claim_id, account_id=caller.account_id, only_booking_id=booking_id
        )

    return await _unless_deadlocked(request, one_booking)


async def _unless_deadlocked(
    request: Request, give_back: Callable[[AsyncSession], Awaitable[ClaimResponse]]
) -> ClaimResponse:
    """Give back in a transaction that is repeated after a deadlock.

    Pools are locked in one order, but those who wait in them are not: two families that each give back several places
    can reach the same two waiters in opposite order. And nobody is in two places at once by a constraint, which waits
    for whatever others are writing of the same people, commits of the gate among them; no order rules that out.

    The transaction has to be the only one of its request: whoever held one connection of the pool, for a kept answer,
    while asking for a second would wait with all others who do the same for connections that none of them gives back.
    """
    state = request.app.state
    settings: Settings = state.settings
    return await repeated_on_deadlock(state.engine, give_back, retry_limit=settings.commit_retry_limit)


async def _give_back(
    db: AsyncSession, request: Request, *, claim_id: UUID, account_id: UUID, only_booking_id: UUID | None
) -> ClaimResponse:
    state = request.app.state
    settings: Settings = state.settings
    gate: Gate = state.gate
    claim, changed = await service.give_back(
        db,
        claim_id=claim_id,
        account_id=account_id,
        only_booking_id=only_booking_id,
        now=state.clock.now(),
        notice=timedelta(minutes=settings.cancel_deadline_minutes),
    )
    if changed:
        after_commit(db, lambda: gate.settle(claim.release_id, changed))
    return ClaimResponse.of(claim)


def _cursor_of(claim: ClaimRow) -> str:
    return write_cursor(claim.decided_at.isoformat(), str(claim.id))


def _key_in(cursor: str | None) -> tuple[datetime, UUID] | None:
    key = read_cursor(cursor, parts=2)
    if key is None:
        return None
    try:
        decided_at = datetime.fromisoformat(key[0])
        claim_id = UUID(key[1])
        if decided_at.tzinfo is None:
            raise bad_cursor()
        # At the edges of what can be said there are times that have no equal in UTC, which is how they are stored.
        return decided_at.astimezone(UTC), claim_id
    except (ValueError, OverflowError):
        raise bad_cursor() from None
