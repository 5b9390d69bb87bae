"""Paths of activities, and of making a release with its sessions."""

from typing import Annotated
from uuid import UUID

from fastapi import Query, Request, Response, status

from app.booking.releases.schemas import ReleaseShown
from app.booking.releases.service import read_release
from app.booking.releases.shown import release_shown
from app.core.auth import Caller
from app.core.context import Now
from app.core.etags import NOT_MODIFIED_RESPONSE, tagged_response
from app.core.openapi import problems
from app.core.pages import PAGE_LIMIT, Cursor, Limit, bad_cursor, page_of, read_cursor, write_cursor
from app.core.problems import Forbidden, NotFound, ValidationFailed
from app.core.web.routing import ApiRouter
from app.core.web.transactions import Read, Tx
from app.programme import service
from app.programme.queries import ActivityCounts
from app.programme.schemas import ActivityPage, ActivityShown, Audience, ReleaseCreation

router = ApiRouter()


@router.post(
    "/v1/releases",
    tags=["releases"],
    summary="Make a release with its sessions",
    status_code=status.HTTP_201_CREATED,
    responses=problems(Forbidden, ValidationFailed),
)
async def create_release(body: ReleaseCreation, response: Response, caller: Caller, now: Now, db: Tx) -> ReleaseShown:
    """Make a draft: the release, its sessions, their pools and places, all of it or nothing. Publishing comes after.

    For staff of every station in it, and operators.
    """
    release_id = await service.create_release_with_sessions(db, body, account_id=caller.account_id, now=now)
    record = await read_release(db, release_id)
    if record is None:
        raise NotFound
    response.headers["Location"] = f"/v1/releases/{release_id}"
    return await release_shown(db, record)


@router.get(
    "/v1/activities",
    tags=["programme"],
    summary="List activities",
    response_model=ActivityPage,
    responses=NOT_MODIFIED_RESPONSE,
)
async def list_activities(
    request: Request,
    db: Read,
    station_id: Annotated[UUID | None, Query(description="Only those of this station.")] = None,
    audience: Annotated[Audience | None, Query(description="Only those for these people.")] = None,
    cursor: Cursor = None,
    limit: Limit = PAGE_LIMIT,
) -> Response:
    """Return what stations offer and offered, in the order in which it was made, with sessions counted by state."""
    after_id = _after_id(cursor)
    found = await service.list_activities(
        db, station_id=station_id, audience=audience, after_id=after_id, limit=limit + 1
    )
    counts, following = page_of(found, limit=limit, cursor_of=lambda one: write_cursor(str(one.activity.id)))
    page = ActivityPage(items=[_shown(one) for one in counts], next=following)
    return tagged_response(request, page.model_dump_json().encode())


def _shown(counts: ActivityCounts) -> ActivityShown:
    activity = counts.activity
    return ActivityShown.model_validate(
        {
            "id": activity.id,
            "station_id": activity.station_id,
            "title": activity.title,
            "summary": activity.summary,
            "audience": activity.audience,
            "first_starts_at": counts.first_starts_at,
            "last_ends_at": counts.last_ends_at,
            "sessions_scheduled": counts.scheduled,
            "sessions_held": counts.held,
            "sessions_cancelled": counts.cancelled,
        }
    )


def _after_id(cursor: str | None) -> UUID | None:
    key = read_cursor(cursor, parts=1)
    try:
        return UUID(key[0]) if key else None
    except ValueError:
        raise bad_cursor() from None
