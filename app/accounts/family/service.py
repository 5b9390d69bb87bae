"""The rules of the family: who may be registered, changed, invited for and removed, and by whom."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final, Protocol, assert_never
from uuid import UUID

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.errors import (
    AccountBlocked,
    AlreadyGuardian,
    BirthMonthInFuture,
    GuardianLimitReached,
    InvitationExpired,
    InvitationLimitReached,
    InvitationUsed,
    PeopleLimitReached,
    UnknownConsentVersion,
    UnknownUnit,
    for_constraint,
)
from app.accounts.family import invitation_queries, queries
from app.accounts.family.queries import NewPerson, PersonFacts, PersonRow
from app.accounts.policy import InvitationVerdict, Purpose, Relation, is_future_month, judge_invitation
from app.accounts.queries import lock_account
from app.core.ids import new_id
from app.core.problems import FieldError, NotAuthenticated, NotFound, Problem
from app.core.sealing import sealer_for
from app.core.settings import Settings

__all__ = ["PersonFacts"]

log = structlog.stdlib.get_logger(__name__)

_INVITATION_TOKEN_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class ConsentView:
    """What a guardian agrees to. Withdrawn altogether: no purposes, and the date says since when."""

    version: str
    purposes: tuple[Purpose, ...]
    given_at: datetime


@dataclass(frozen=True, slots=True)
class PersonView:
    """A person as one of the guardians sees them: relation and consent are this guardian's own."""

    id: UUID
    nickname: str
    birth_month: str
    relation: Relation
    resident_unit_id: UUID | None
    consent: ConsentView
    guardians: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PersonStatement:
    """What a guardian states about a person, and consents to."""

    nickname: str
    birth_month: str
    relation: Relation
    resident_unit_id: UUID | None
    consent_version: str
    consent_purposes: Sequence[Purpose]


@dataclass(frozen=True, slots=True)
class OpenInvitation:
    """An invitation as it is told once: only the hash of its token is kept."""

    token: str
    expires_at: datetime


class WhenErased(Protocol):
    """What a feature above does about a person who is being erased, in the same transaction.

    Accounts know no bookings, so `main` hands this down. What it raises keeps the person from being erased.
    """

    async def __call__(self, db: AsyncSession, *, person_id: UUID, now: datetime) -> None: ...


async def register_person(
    db: AsyncSession, *, account_id: UUID, stated: PersonStatement, now: datetime, settings: Settings
) -> PersonView:
    """Register a person with this account as the first guardian. Two statements.

    Raises `BirthMonthInFuture`, `UnknownConsentVersion`, `UnknownUnit`, `PeopleLimitReached`, `SelfRegistered` and
    `AccountBlocked`.
    """
    _check_stated(stated, now=now, settings=settings)
    await _lock_own_account(db, account_id)
    person = _sealed(new_id(), stated, settings)
    try:
        registered = await queries.register_person(
            db,
            account_id=account_id,
            person=person,
            consent_id=new_id(),
            people_limit=settings.people_limit,
            now=now,
        )
    except IntegrityError as error:
        raise for_constraint(error) from None
    if not registered.unit_known:
        raise _unknown_unit()
    if not registered.has_room:
        raise PeopleLimitReached(extra={"limit": settings.people_limit})
    return PersonView(
        id=person.id,
        nickname=stated.nickname,
        birth_month=stated.birth_month,
        relation=stated.relation,
        resident_unit_id=stated.resident_unit_id,
        consent=ConsentView(stated.consent_version, tuple(stated.consent_purposes), now),
        guardians=1,
        created_at=now,
    )


async def list_people(
    db: AsyncSession, *, account_id: UUID, after: UUID | None, limit: int, settings: Settings
) -> list[PersonView]:
    """Return up to `limit` people of the account, oldest registration first, those after the id `after`."""
    rows = await queries.people_of(db, account_id=account_id, after=after, limit=limit)
    return [_view(row, settings) for row in rows]


async def read_person(db: AsyncSession, *, account_id: UUID, person_id: UUID, settings: Settings) -> PersonView:
    """Return one person of the account; raise `NotFound` for any other."""
    row = await queries.person_of(db, account_id=account_id, person_id=person_id)
    if row is None:
        raise NotFound
    return _view(row, settings)


async def change_person(
    db: AsyncSession,
    *,
    account_id: UUID,
    person_id: UUID,
    stated: PersonStatement,
    now: datetime,
    settings: Settings,
) -> PersonView:
    """Replace what is stated about a person, and this guardian's relation and consent.

    Raises `NotFound` and what `register_person` raises for the same statement.
    """
    _check_stated(stated, now=now, settings=settings)
    await _lock_own_person(db, account_id, person_id)
    try:
        changed = await queries.change_person(db, account_id=account_id, person=_sealed(person_id, stated, settings))
    except IntegrityError as error:
        raise for_constraint(error) from None
    if not changed:
        raise _unknown_unit()
    await _record_consent(
        db, account_id, person_id, version=stated.consent_version, purposes=stated.consent_purposes, now=now
    )
    return await read_person(db, account_id=account_id, person_id=person_id, settings=settings)


async def change_consent(
    db: AsyncSession,
    *,
    account_id: UUID,
    person_id: UUID,
    version: str,
    purposes: Sequence[Purpose],
    now: datetime,
    settings: Settings,
) -> PersonView:
    """Put a new consent of this guardian in the place of the standing one; no purposes withdraw it.

    The same consent again changes nothing, its date included. Raises `NotFound` and `UnknownConsentVersion`.
    """
    _check_version(version, settings)
    await _lock_own_person(db, account_id, person_id)
    await _record_consent(db, account_id, person_id, version=version, purposes=purposes, now=now)
    return await read_person(db, account_id=account_id, person_id=person_id, settings=settings)


async def leave_person(
    db: AsyncSession, *, account_id: UUID, person_id: UUID, now: datetime, when_erased: WhenErased
) -> None:
    """End this account's guardianship; the last guardian's leaving erases the person and keeps the anonymous row.

    Raises `NotFound`, and what `when_erased` raises.
    """
    await _lock_own_person(db, account_id, person_id)
    erased = await queries.leave_person(db, account_id=account_id, person_id=person_id, now=now)
    if erased:
        await when_erased(db, person_id=person_id, now=now)
    log.info("guardian_left", person=str(person_id), erased=erased)


async def invite_guardian(
    db: AsyncSession, *, account_id: UUID, person_id: UUID, now: datetime, settings: Settings
) -> OpenInvitation:
    """Make an invitation for one further guardian.

    Raises `NotFound`, `InvitationLimitReached`, `GuardianLimitReached` and `AccountBlocked`.
    """
    # In the order in which `accept_invitation` locks them, too.
    await _lock_own_account(db, account_id)
    await _lock_own_person(db, account_id, person_id)
    token = secrets.token_urlsafe(_INVITATION_TOKEN_BYTES)
    expires_at = now + timedelta(hours=settings.invitation_hours)
    invited = await invitation_queries.invite(
        db,
        invitation_id=new_id(),
        account_id=account_id,
        person_id=person_id,
        token_hash=_hash(token),
        now=now,
        expires_at=expires_at,
        open_limit=settings.invitation_open_limit,
        guardian_limit=settings.guardian_limit,
    )
    if not invited.has_room:
        raise GuardianLimitReached(extra={"limit": settings.guardian_limit})
    if not invited.may_invite:
        raise InvitationLimitReached(extra={"limit": settings.invitation_open_limit})
    return OpenInvitation(token, expires_at)


async def accept_invitation(
    db: AsyncSession,
    *,
    account_id: UUID,
    token: str,
    relation: Relation,
    consent_version: str,
    consent_purposes: Sequence[Purpose],
    now: datetime,
    settings: Settings,
) -> PersonView:
    """Make the account a guardian of the person it was invited for. Sent again by the same account: the same answer.

    Raises `NotFound`, `InvitationUsed`, `InvitationExpired`, `AlreadyGuardian`, `GuardianLimitReached`,
    `PeopleLimitReached`, `SelfRegistered`, `UnknownConsentVersion` and `AccountBlocked`.
    """
    _check_version(consent_version, settings)
    await _lock_own_account(db, account_id)
    token_hash = _hash(token)
    if await invitation_queries.lock_invited_person(db, token_hash=token_hash) is None:
        raise NotFound
    facts = await invitation_queries.invitation_facts(db, token_hash=token_hash, account_id=account_id)
    if facts is None:
        raise NotFound
    verdict = judge_invitation(
        facts,
        account_id=account_id,
        now=now,
        guardian_limit=settings.guardian_limit,
        people_limit=settings.people_limit,
    )
    refusal = _refusal(verdict, settings)
    if refusal is not None:
        raise refusal
    if verdict is InvitationVerdict.ACCEPT:
        try:
            await invitation_queries.accept_invitation(
                db,
                invitation_id=facts.id,
                account_id=account_id,
                relation=relation,
                consent_id=new_id(),
                version=consent_version,
                purposes=consent_purposes,
                now=now,
            )
        except IntegrityError as error:
            raise for_constraint(error) from None
    return await read_person(db, account_id=account_id, person_id=facts.person_id, settings=settings)


async def people_for_pass(db: AsyncSession, *, account_id: UUID, person_ids: Sequence[UUID]) -> list[PersonFacts]:
    """Return what decides about booking for those of the people that the account is a guardian of. One statement.

    Others are absent, whether they exist or not; all are while the account is blocked.
    """
    return await queries.people_for_pass(db, account_id=account_id, person_ids=person_ids)


def _refusal(verdict: InvitationVerdict, settings: Settings) -> Problem | None:
    match verdict:
        case InvitationVerdict.ACCEPT | InvitationVerdict.ACCEPTED_BEFORE:
            return None
        case InvitationVerdict.USED:
            return InvitationUsed()
        case InvitationVerdict.ALREADY_GUARDIAN:
            return AlreadyGuardian()
        case InvitationVerdict.EXPIRED:
            return InvitationExpired()
        case InvitationVerdict.GUARDIANS_FULL:
            return GuardianLimitReached(extra={"limit": settings.guardian_limit})
        case InvitationVerdict.PEOPLE_FULL:
            return PeopleLimitReached(extra={"limit": settings.people_limit})
        case _:
            assert_never(verdict)


def _check_stated(stated: PersonStatement, *, now: datetime, settings: Settings) -> None:
    if is_future_month(stated.birth_month, now=now):
        raise BirthMonthInFuture(errors=[FieldError("birth_month", "in_the_future")])
    _check_version(stated.consent_version, settings)


def _check_version(version: str, settings: Settings) -> None:
    known = {name.strip() for name in settings.consent_versions.split(",")} - {""}
    if known and version not in known:
        raise UnknownConsentVersion(extra={"known": sorted(known)})


def _unknown_unit() -> UnknownUnit:
    return UnknownUnit(errors=[FieldError("resident_unit_id", "unknown_unit")])


async def _lock_own_account(db: AsyncSession, account_id: UUID) -> None:
    blocked = await lock_account(db, account_id=account_id)
    if blocked is None:
        # Signed, yet unknown: a token of another database.
        raise NotAuthenticated
    if blocked:
        raise AccountBlocked


async def _lock_own_person(db: AsyncSession, account_id: UUID, person_id: UUID) -> None:
    if not await queries.lock_person(db, account_id=account_id, person_id=person_id):
        raise NotFound


async def _record_consent(
    db: AsyncSession,
    account_id: UUID,
    person_id: UUID,
    *,
    version: str,
    purposes: Sequence[Purpose],
    now: datetime,
) -> None:
    await queries.withdraw_other_consent(
        db, account_id=account_id, person_id=person_id, version=version, purposes=purposes, now=now
    )
    await queries.add_consent(
        db,
        consent_id=new_id(),
        account_id=account_id,
        person_id=person_id,
        version=version,
        purposes=purposes,
        now=now,
    )


def _sealed(person_id: UUID, stated: PersonStatement, settings: Settings) -> NewPerson:
    return NewPerson(
        id=person_id,
        nickname_sealed=sealer_for(settings).seal(stated.nickname, row_id=person_id),
        birth_month=stated.birth_month,
        resident_unit_id=stated.resident_unit_id,
        relation=stated.relation,
        consent_version=stated.consent_version,
        consent_purposes=stated.consent_purposes,
    )


def _view(row: PersonRow, settings: Settings) -> PersonView:
    return PersonView(
        id=row.id,
        nickname=sealer_for(settings).open(row.nickname_sealed, row_id=row.id),
        birth_month=row.birth_month,
        relation=Relation(row.relation),
        resident_unit_id=row.resident_unit_id,
        consent=ConsentView(
            row.consent_version, tuple(Purpose(purpose) for purpose in row.consent_purposes), row.consent_given_at
        ),
        guardians=row.guardians,
        created_at=row.created_at,
    )


def _hash(token: str) -> bytes:
    return sha256(token.encode()).digest()
