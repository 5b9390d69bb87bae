"""Paths of the catalogue and of staff's work on releases. `POST /v1/releases` belongs to whoever makes sessions."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Path, Query, Request, Response
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.booking.gate.errors import GateUnreachable
from app.booking.releases import service
from app.booking.releases.catalogue import Catalogue
from app.booking.releases.errors import CapacityBelowHeld, ReleaseFrozen, ReleaseNotPublishable
from app.booking.releases.policy import Phase
from app.booking.releases.schemas import (
    CapacityChange,
    PoolShown,
    ReleaseAudit,
    ReleaseChange,
    ReleaseChangePage,
    ReleaseChangeShown,
    ReleasePage,
    ReleaseShown,
)
from app.booking.releases.shown import pool_shown, release_shown, releases_shown
from app.core.auth import Caller, CallerOrVisitor
from app.core.clock import Clock
from app.core.context import Now
from app.core.db import after_commit
from app.core.etags import NOT_MODIFIED_RESPONSE, PRIVATE_REVALIDATE, tagged_response
from app.core.openapi import problems
from app.core.pages import Cursor, Limit, bad_cursor, page_of, read_cursor, write_cursor
from app.core.problems import Forbidden, NotFound, ValidationFailed
from app.core.settings import Settings
from app.core.web.routing import ApiRouter
from app.core.web.transactions import Read, Tx

router = ApiRouter(tags=["releases"])

ReleaseId = Annotated[UUID, Path(description="A release's id.")]
PoolId = Annotated[UUID, Path(description="A pool's id.")]

# A release with 14 sessions has some 6 KiB.
PAGE_ITEMS_DEFAULT: Final = 20

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def _catalogue(request: Request) -> Catalogue:
    """Return this worker's catalogue: one for each application, made when it is first asked for."""
    state = request.app.state
    known: Catalogue | None = getattr(state, "catalogue", None)
    if known is None:
        settings: Settings = state.settings
        engine: AsyncEngine = state.engine
        known = Catalogue(engine, age_ms=settings.catalogue_age_ms, answers_limit=settings.catalogue_answers_limit)
        state.catalogue = known
    return known


async def _gate(request: Request) -> service.GateDoor:
    gate: service.GateDoor = request.app.state.gate
    return gate


async def _clock(request: Request) -> Clock:
    clock: Clock = request.app.state.clock
    return clock


OneClock = Annotated[Clock, Depends(_clock)]
FromCatalogue = Annotated[Catalogue, Depends(_catalogue)]
AtTheGate = Annotated[service.GateDoor, Depends(_gate)]


def forget_after_commit(db: AsyncSession, catalogue: Catalogue) -> None:
    """Have this worker show the change at once; the others do within `catalogue_age_ms`."""

    async def forget() -> None:
        catalogue.forget()

    after_commit(db, forget)


@router.get("/v1/releases", summary="List releases", response_model=ReleasePage, responses=NOT_MODIFIED_RESPONSE)
async def list_releases(
    request: Request,
    now: Now,
    catalogue: FromCatalogue,
    state: Annotated[Phase | None, Query(description="Before its opening, open now, or closed.")] = None,
    cursor: Cursor = None,
    limit: Limit = PAGE_ITEMS_DEFAULT,
) -> Response:
    """Return published releases with their pools: those upcoming or open by their opening, others the latest first.

    An answer is at most a second old. Answers 304 to a matching `If-None-Match`.
    """
    after = _after(cursor)

    async def render(db: AsyncSession) -> bytes:
        found = await service.list_releases(db, phase=state, now=now, after=after, limit=limit + 1)
        records, following = page_of(
            found,
            limit=limit,
            cursor_of=lambda record: write_cursor(_microseconds(record.release.opens_at), str(record.release.id)),
        )
        page = ReleasePage(items=await releases_shown(db, records), next=following)
        return page.model_dump_json().encode()

    answer = await catalogue.answer(("list", state, after, limit), render)
    assert answer is not None  # noqa: S101 - a list may be empty, but it is always there
    return tagged_response(request, answer.body, etag=answer.etag)


@router.get(
    "/v1/releases/{release_id}",
    summary="Read a release",
    response_model=ReleaseShown,
    responses={**NOT_MODIFIED_RESPONSE, **problems(NotFound)},
    # Or none of what FastAPI finds in the signature: visitors read it, too.
    openapi_extra={"security": [{}]},
)
async def read_release(
    request: Request, release_id: ReleaseId, caller: CallerOrVisitor, db: Read, catalogue: FromCatalogue
) -> Response:
    """Return a release with its pools. Drafts are there only for staff of a station in them, and operators.

    An answer is at most a second old. Answers 304 to a matching `If-None-Match`.
    """

    async def render(own: AsyncSession) -> bytes | None:
        record = await service.read_release(own, release_id)
        if record is None or record.release.state == "draft":
            return None
        return (await release_shown(own, record)).model_dump_json().encode()

    answer = await catalogue.answer(("release", release_id), render)
    if answer is not None:
        return tagged_response(request, answer.body, etag=answer.etag)
    draft = await service.draft_for_staff(db, release_id, account_id=caller.account_id if caller else None)
    body = (await release_shown(db, draft)).model_dump_json().encode()
    return tagged_response(request, body, cache_control=PRIVATE_REVALIDATE)


@router.put(
    "/v1/releases/{release_id}",
    summary="Change a release",
    responses=problems(Forbidden, NotFound, ReleaseFrozen, ValidationFailed, GateUnreachable),
)
async def change_release(
    release_id: ReleaseId,
    body: ReleaseChange,
    caller: Caller,
    clock: OneClock,
    db: Tx,
    catalogue: FromCatalogue,
    gate: AtTheGate,
) -> ReleaseShown:
    """Change a draft; or, with a reason, title and times of a published release that has not opened yet.

    For staff of every station in it, and operators.
    """
    wanted = service.ReleaseChanges(**body.model_dump(exclude={"reason"}))
    record = await service.change_release(
        db, release_id, wanted, reason=body.reason, account_id=caller.account_id, clock=clock, gate=gate
    )
    forget_after_commit(db, catalogue)
    return await release_shown(db, record)


@router.post(
    "/v1/releases/{release_id}/publish",
    summary="Publish a release",
    responses=problems(Forbidden, NotFound, ReleaseNotPublishable),
)
async def publish_release(
    release_id: ReleaseId, caller: Caller, now: Now, db: Tx, catalogue: FromCatalogue, gate: AtTheGate
) -> ReleaseShown:
    """Publish a draft and freeze its rules under `rules_version`. Publishing again answers the same.

    For staff of every station in it, and operators.
    """
    record = await service.publish_release(db, release_id, account_id=caller.account_id, now=now, gate=gate)
    forget_after_commit(db, catalogue)
    return await release_shown(db, record)


@router.get(
    "/v1/releases/{release_id}/audit",
    summary="Audit a release",
    responses=problems(Forbidden, NotFound),
)
async def audit_release(release_id: ReleaseId, caller: Caller, db: Read, gate: AtTheGate) -> ReleaseAudit:
    """Count places, holders and waiters in PostgreSQL, now, and put the gate's own counts beside them.

    For staff of a station in it, and operators.
    """
    audit = await service.audit_release(db, release_id, account_id=caller.account_id, gate=gate)
    return ReleaseAudit.model_validate(
        {
            "release": release_id,
            **audit.counts._asdict(),
            "gate": dict(audit.gate) if audit.gate is not None else None,
            "consistent": audit.consistent,
        }
    )


@router.get(
    "/v1/releases/{release_id}/changes",
    summary="Who changed a release, and why",
    responses=problems(Forbidden, NotFound),
)
async def list_changes(
    release_id: ReleaseId, caller: Caller, db: Read, cursor: Cursor = None, limit: Limit = PAGE_ITEMS_DEFAULT
) -> ReleaseChangePage:
    """List changes of capacities and of the published release, with their reasons, newest first.

    For staff of a station in it, and operators.
    """
    found = await service.list_changes(
        db, release_id, account_id=caller.account_id, before_id=_before_id(cursor), limit=limit + 1
    )
    changes, following = page_of(found, limit=limit, cursor_of=lambda change: write_cursor(str(change.id)))
    return ReleaseChangePage(
        items=[
            ReleaseChangeShown.model_validate(
                {
                    "id": change.id,
                    "pool": change.pool_id,
                    "changed_by": change.changed_by,
                    "changed_at": change.changed_at,
                    "reason": change.reason,
                    "changes": change.changes,
                }
            )
            for change in changes
        ],
        next=following,
    )


@router.put(
    "/v1/pools/{pool_id}/capacity",
    tags=["releases"],
    summary="Raise or lower a capacity",
    responses=problems(Forbidden, NotFound, CapacityBelowHeld, ValidationFailed, GateUnreachable),
)
async def set_capacity(
    pool_id: PoolId, body: CapacityChange, caller: Caller, db: Tx, catalogue: FromCatalogue, gate: AtTheGate
) -> PoolShown:
    """Give a pool this many places. New ones go to those who wait first; held ones are never taken away.

    For staff of the pool's station, and operators.
    """
    record = await service.set_capacity(
        db, pool_id, capacity=body.capacity, reason=body.reason, account_id=caller.account_id, gate=gate
    )
    forget_after_commit(db, catalogue)
    return await pool_shown(db, record)


def _microseconds(instant: datetime) -> str:
    return str((instant - _UNIX_EPOCH) // timedelta(microseconds=1))


def _before_id(cursor: str | None) -> UUID | None:
    key = read_cursor(cursor, parts=1)
    try:
        return UUID(key[0]) if key else None
    except ValueError:
        raise bad_cursor() from None


def _after(cursor: str | None) -> tuple[datetime, UUID] | None:
    key = read_cursor(cursor, parts=2)
    if key is None:
        return None
    try:
        opens_at = _UNIX_EPOCH + timedelta(microseconds=int(key[0]))
        return opens_at, UUID(key[1])
    except (ValueError, OverflowError):
        raise bad_cursor() from None
