"""Paths of the family: only the caller's own people exist here."""

from uuid import UUID

from fastapi import Request

from app.accounts.errors import (
    AccountBlocked,
    AlreadyGuardian,
    BirthMonthInFuture,
    GuardianLimitReached,
    InvitationExpired,
    InvitationLimitReached,
    InvitationUsed,
    PeopleLimitReached,
    SelfRegistered,
    UnknownConsentVersion,
    UnknownUnit,
)
from app.accounts.family import service
from app.accounts.family.schemas import (
    ConsentGiven,
    InvitationAcceptance,
    InvitationShown,
    PeoplePage,
    PersonBody,
    PersonShown,
)
from app.core.auth import Caller
from app.core.context import Configured, Now
from app.core.openapi import problems
from app.core.pages import PAGE_LIMIT, Cursor, Limit, bad_cursor, page_of, read_cursor, write_cursor
from app.core.problems import NotFound
from app.core.web.routing import ApiRouter
from app.core.web.transactions import Read, Tx

router = ApiRouter(prefix="/v1/me", tags=["family"])


@router.post(
    "/people",
    summary="Register a person",
    status_code=201,
    responses=problems(
        PeopleLimitReached, SelfRegistered, BirthMonthInFuture, UnknownUnit, UnknownConsentVersion, AccountBlocked
    ),
)
async def register_person(body: PersonBody, caller: Caller, db: Tx, now: Now, settings: Configured) -> PersonShown:
    """Register somebody to book for. Nickname and month of birth are enough: no name, no number, no school, no face."""
    person = await service.register_person(
        db, account_id=caller.account_id, stated=body.stated(), now=now, settings=settings
    )
    return PersonShown.model_validate(person)


@router.get("/people", summary="My people")
async def list_people(
    caller: Caller,
    db: Read,
    settings: Configured,
    cursor: Cursor = None,
    limit: Limit = PAGE_LIMIT,
) -> PeoplePage:
    """Return the people that the caller may book for."""
    people = await service.list_people(
        db, account_id=caller.account_id, after=_id_in(cursor), limit=limit + 1, settings=settings
    )
    shown, following = page_of(people, limit=limit, cursor_of=lambda person: write_cursor(str(person.id)))
    return PeoplePage(items=[PersonShown.model_validate(person) for person in shown], next=following)


def _id_in(cursor: str | None) -> UUID | None:
    key = read_cursor(cursor, parts=1)
    if key is None:
        return None
    try:
        return UUID(key[0])
    except ValueError:
        raise bad_cursor() from None


@router.get("/people/{person_id}", summary="One of my people", responses=problems(NotFound))
async def read_person(person_id: UUID, caller: Caller, db: Read, settings: Configured) -> PersonShown:
    """Return one person. Somebody else's is as unknown as one that does not exist."""
    person = await service.read_person(db, account_id=caller.account_id, person_id=person_id, settings=settings)
    return PersonShown.model_validate(person)


@router.put(
    "/people/{person_id}",
    summary="Change a person",
    responses=problems(NotFound, SelfRegistered, BirthMonthInFuture, UnknownUnit, UnknownConsentVersion),
)
async def change_person(
    person_id: UUID, body: PersonBody, caller: Caller, db: Tx, now: Now, settings: Configured
) -> PersonShown:
    """Replace what is stated about a person. Relation and consent are the caller's own; the rest is shared."""
    person = await service.change_person(
        db,
        account_id=caller.account_id,
        person_id=person_id,
        stated=body.stated(),
        now=now,
        settings=settings,
    )
    return PersonShown.model_validate(person)


@router.delete("/people/{person_id}", summary="Remove a person", status_code=204, responses=problems(NotFound))
async def leave_person(person_id: UUID, caller: Caller, request: Request, db: Tx, now: Now) -> None:
    """End the caller's guardianship. When the last guardian leaves, the person is erased; counts stay, anonymous.

    With the person go their places in sessions that have not begun, however soon they begin: each passes to whoever
    waits first.
    """
    when_erased: service.WhenErased = request.app.state.when_erased
    await service.leave_person(db, account_id=caller.account_id, person_id=person_id, now=now, when_erased=when_erased)


@router.put(
    "/people/{person_id}/consent",
    summary="Change or withdraw a consent",
    responses=problems(NotFound, UnknownConsentVersion),
)
async def change_consent(
    person_id: UUID, body: ConsentGiven, caller: Caller, db: Tx, now: Now, settings: Configured
) -> PersonShown:
    """Put a consent in the place of the standing one. Empty `purposes` withdraw it; the old one stays as history."""
    person = await service.change_consent(
        db,
        account_id=caller.account_id,
        person_id=person_id,
        version=body.version,
        purposes=body.purposes,
        now=now,
        settings=settings,
    )
    return PersonShown.model_validate(person)


@router.post(
    "/people/{person_id}/invitations",
    summary="Invite a further guardian",
    status_code=201,
    responses=problems(NotFound, InvitationLimitReached, GuardianLimitReached, AccountBlocked),
)
async def invite_guardian(person_id: UUID, caller: Caller, db: Tx, now: Now, settings: Configured) -> InvitationShown:
    """Make an invitation to pass on. It is good once; whoever accepts it sees and books for the person from then on."""
    invitation = await service.invite_guardian(
        db, account_id=caller.account_id, person_id=person_id, now=now, settings=settings
    )
    return InvitationShown.model_validate(invitation)


@router.post(
    "/invitations/accept",
    summary="Become a further guardian",
    status_code=201,
    responses=problems(
        NotFound,
        InvitationUsed,
        InvitationExpired,
        AlreadyGuardian,
        GuardianLimitReached,
        PeopleLimitReached,
        SelfRegistered,
        UnknownConsentVersion,
        AccountBlocked,
    ),
)
async def accept_invitation(
    body: InvitationAcceptance, caller: Caller, db: Tx, now: Now, settings: Configured
) -> PersonShown:
    """Accept an invitation. The account that accepted it may send this again and gets the person again."""
    person = await service.accept_invitation(
        db,
        account_id=caller.account_id,
        token=body.token,
        relation=body.relation,
        consent_version=body.consent.version,
        consent_purposes=body.consent.purposes,
        now=now,
        settings=settings,
    )
    return PersonShown.model_validate(person)
