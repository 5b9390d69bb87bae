"""Statements about invitations of further guardians: one function, one statement, one round trip."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, func, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import Text

from app.accounts.models import GuardianInvitation, Guardianship, Person
from app.accounts.policy import InvitationFacts

# The number of open invitations and guardians is counted in the statement after the lock, and so is true.
_INVITE: Final = text("""
    WITH asked AS (
        SELECT (SELECT count(*) FROM guardian_invitation
                WHERE person_id = :person_id AND accepted_at IS NULL AND expires_at > :now) < :open_limit AS may_invite,
               (SELECT count(*) FROM guardianship WHERE person_id = :person_id) < :guardian_limit AS has_room
    ), invited AS (
        INSERT INTO guardian_invitation (id, person_id, inviter_id, token_hash, created_at, expires_at)
        SELECT :id, :person_id, :account_id, :token_hash, :now, :expires_at FROM asked WHERE may_invite AND has_room
    )
    SELECT may_invite, has_room FROM asked
""")


@dataclass(frozen=True, slots=True)
class Invited:
    """Whether an invitation went in, and which of the two conditions kept it out."""

    may_invite: bool
    has_room: bool


async def invite(
    db: AsyncSession,
    *,
    invitation_id: UUID,
    account_id: UUID,
    person_id: UUID,
    token_hash: bytes,
    now: datetime,
    expires_at: datetime,
    open_limit: int,
    guardian_limit: int,
) -> Invited:
    """Add an invitation unless too many are open or the person has guardians enough; says which failed.

    The caller holds the lock of `lock_person`.
    """
    result = await db.execute(
        _INVITE,
        {
            "id": invitation_id,
            "account_id": account_id,
            "person_id": person_id,
            "token_hash": token_hash,
            "now": now,
            "expires_at": expires_at,
            "open_limit": open_limit,
            "guardian_limit": guardian_limit,
        },
    )
    row = result.one()
    return Invited(row.may_invite, row.has_room)


async def lock_invited_person(db: AsyncSession, *, token_hash: bytes) -> UUID | None:
    """Lock the person that an invitation is for until the transaction ends; None if there is no such invitation."""
    statement = (
        select(Person.id)
        .join(GuardianInvitation, GuardianInvitation.person_id == Person.id)
        .where(GuardianInvitation.token_hash == token_hash, Person.removed_at.is_(None))
        .with_for_update(key_share=True, of=Person)
    )
    return (await db.execute(statement)).scalar_one_or_none()


async def invitation_facts(db: AsyncSession, *, token_hash: bytes, account_id: UUID) -> InvitationFacts | None:
    """Return an invitation with what decides about it. The caller holds the locks of its account and its person."""
    guardians = select(func.count()).where(Guardianship.person_id == GuardianInvitation.person_id).scalar_subquery()
    people = select(func.count()).where(Guardianship.account_id == account_id).scalar_subquery()
    mine = (
        select(literal(1))
        .where(Guardianship.person_id == GuardianInvitation.person_id, Guardianship.account_id == account_id)
        .exists()
    )
    statement = select(
        GuardianInvitation.id,
        GuardianInvitation.person_id,
        GuardianInvitation.expires_at,
        GuardianInvitation.accepted_by,
        GuardianInvitation.accepted_at.is_not(None),
        mine,
        guardians,
        people,
    ).where(GuardianInvitation.token_hash == token_hash)
    row = (await db.execute(statement)).one_or_none()
    return None if row is None else InvitationFacts(*row)


_ACCEPT: Final = text("""
    WITH used AS (
        UPDATE guardian_invitation SET accepted_at = :now, accepted_by = :account_id WHERE id = :invitation_id
        RETURNING person_id
    ), new_guardianship AS (
        INSERT INTO guardianship (person_id, account_id, relation, since)
        SELECT person_id, :account_id, :relation, :now FROM used
    )
    INSERT INTO consent (id, person_id, account_id, version, purposes, given_at)
    SELECT :consent_id, person_id, :account_id, :version, :purposes, :now FROM used
""").bindparams(bindparam("purposes", type_=ARRAY(Text)))


async def accept_invitation(
    db: AsyncSession,
    *,
    invitation_id: UUID,
    account_id: UUID,
    relation: str,
    consent_id: UUID,
    version: str,
    purposes: Sequence[str],
    now: datetime,
) -> None:
    """Use an invitation up and make the account a guardian. Raises `IntegrityError` of `uq_guardianship_one_self`."""
    await db.execute(
        _ACCEPT,
        {
            "invitation_id": invitation_id,
            "account_id": account_id,
            "relation": relation,
            "consent_id": consent_id,
            "version": version,
            "purposes": list(purposes),
            "now": now,
        },
    )
