"""Statements about people and their guardians: one function, one statement, one round trip."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Select, bindparam, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlalchemy.types import Text, Uuid

from app.accounts.models import Consent, Guardianship, Person
from app.accounts.policy import Purpose


@dataclass(frozen=True, slots=True)
class PersonRow:
    """A person as one of the guardians sees them; the nickname is still sealed."""

    id: UUID
    nickname_sealed: bytes
    birth_month: str
    resident_unit_id: UUID | None
    created_at: datetime
    relation: str
    consent_version: str
    consent_purposes: Sequence[str]
    consent_given_at: datetime
    guardians: int


@dataclass(frozen=True, slots=True)
class NewPerson:
    """A person about to be registered, or about to be changed: everything that a guardian states."""

    id: UUID
    nickname_sealed: bytes
    birth_month: str
    resident_unit_id: UUID | None
    relation: str
    consent_version: str
    consent_purposes: Sequence[str]


@dataclass(frozen=True, slots=True)
class PersonFacts:
    """What decides whether a person may be booked for. `may_book`: this guardian consents to booking at present."""

    id: UUID
    birth_month: str
    resident_unit_id: UUID | None
    may_book: bool


@dataclass(frozen=True, slots=True)
class Registered:
    """Whether a person went in, and which of the two conditions kept them out."""

    has_room: bool
    unit_known: bool


# `unit` belongs to the feature above, which accounts may not import: it is named, not joined, and nothing is read from
# it but that the id is there. A callable handed down by `main` would cost a round trip for the same answer.
_REGISTER: Final = text("""
    WITH asked AS (
        SELECT (SELECT count(*) FROM guardianship WHERE account_id = :account_id) < :people_limit AS has_room,
               CAST(:unit_id AS uuid) IS NULL
                   OR EXISTS (SELECT FROM unit WHERE id = CAST(:unit_id AS uuid)) AS unit_known
    ), new_person AS (
        INSERT INTO person (id, nickname_sealed, birth_month, resident_unit_id, created_at)
        SELECT :person_id, :nickname_sealed, :birth_month, CAST(:unit_id AS uuid), :now FROM asked
        WHERE has_room AND unit_known
        RETURNING id
    ), new_guardianship AS (
        INSERT INTO guardianship (person_id, account_id, relation, since)
        SELECT id, :account_id, :relation, :now FROM new_person
    ), new_consent AS (
        INSERT INTO consent (id, person_id, account_id, version, purposes, given_at)
        SELECT :consent_id, id, :account_id, :version, :purposes, :now FROM new_person
    )
    SELECT has_room, unit_known FROM asked
""").bindparams(bindparam("unit_id", type_=Uuid), bindparam("purposes", type_=ARRAY(Text)))


async def register_person(
    db: AsyncSession, *, account_id: UUID, person: NewPerson, consent_id: UUID, people_limit: int, now: datetime
) -> Registered:
    """Add a person with this account as the guardian, if it has room and the unit exists; says which failed.

    The caller holds the lock of `lock_account`, or two at once could exceed the limit. Raises `IntegrityError` of
    `uq_guardianship_one_self`.
    """
    result = await db.execute(
        _REGISTER,
        {
            "account_id": account_id,
            "people_limit": people_limit,
            "unit_id": person.resident_unit_id,
            "person_id": person.id,
            "nickname_sealed": person.nickname_sealed,
            "birth_month": person.birth_month,
            "relation": person.relation,
            "consent_id": consent_id,
            "version": person.consent_version,
            "purposes": list(person.consent_purposes),
            "now": now,
        },
    )
    row = result.one()
    return Registered(row.has_room, row.unit_known)


def _people(
    account_id: UUID,
) -> Select[UUID, bytes, str, UUID | None, datetime, str, str, list[str], datetime, int]:
    everyone = aliased(Guardianship)
    guardians = select(func.count()).select_from(everyone).where(everyone.person_id == Person.id).scalar_subquery()
    return (
        select(
            Person.id,
            Person.nickname_sealed,
            Person.birth_month,
            Person.resident_unit_id,
            Person.created_at,
            Guardianship.relation,
            Consent.version,
            Consent.purposes,
            Consent.given_at,
            guardians,
        )
        .join(Guardianship, Guardianship.person_id == Person.id)
        .join(
            Consent,
            (Consent.person_id == Person.id)
            & (Consent.account_id == Guardianship.account_id)
            & Consent.withdrawn_at.is_(None),
        )
        .where(Guardianship.account_id == account_id, Person.removed_at.is_(None))
    )


async def people_of(db: AsyncSession, *, account_id: UUID, after: UUID | None, limit: int) -> list[PersonRow]:
    """Return up to `limit` people of an account, in the order of their ids, those after `after`."""
    statement = _people(account_id).order_by(Person.id).limit(limit)
    if after is not None:
        statement = statement.where(Person.id > after)
    return [PersonRow(*row) for row in await db.execute(statement)]


async def person_of(db: AsyncSession, *, account_id: UUID, person_id: UUID) -> PersonRow | None:
    """Return a person of an account; None if there is none, or not of this account."""
    row = (await db.execute(_people(account_id).where(Person.id == person_id))).one_or_none()
    return None if row is None else PersonRow(*row)


async def lock_person(db: AsyncSession, *, account_id: UUID, person_id: UUID) -> bool:
    """Lock a person until the transaction ends; False if there is none, or not of this account.

    Everything that changes a person's guardians, consents and invitations queues up here.
    """
    statement = (
        select(literal(1))
        .select_from(Person)
        .join(Guardianship, Guardianship.person_id == Person.id)
        .where(Person.id == person_id, Person.removed_at.is_(None), Guardianship.account_id == account_id)
        .with_for_update(key_share=True, of=[Person, Guardianship])
    )
    return (await db.execute(statement)).first() is not None


# The nickname is sealed anew each time, so this always writes; and no row means that the unit is not known.
_CHANGE: Final = text("""
    WITH changed AS (
        UPDATE person
        SET nickname_sealed = :nickname_sealed, birth_month = :birth_month, resident_unit_id = :unit_id
        WHERE id = :person_id AND (:unit_id IS NULL OR EXISTS (SELECT FROM unit WHERE id = :unit_id))
        RETURNING id
    ), related AS (
        UPDATE guardianship SET relation = :relation FROM changed
        WHERE person_id = changed.id AND account_id = :account_id
    )
    SELECT id FROM changed
""").bindparams(bindparam("unit_id", type_=Uuid))


async def change_person(db: AsyncSession, *, account_id: UUID, person: NewPerson) -> bool:
    """Replace what a guardian states about a person; False if the unit does not exist, and nothing is changed.

    Raises `IntegrityError` of `uq_guardianship_one_self`.
    """
    result = await db.execute(
        _CHANGE,
        {
            "account_id": account_id,
            "person_id": person.id,
            "nickname_sealed": person.nickname_sealed,
            "birth_month": person.birth_month,
            "unit_id": person.resident_unit_id,
            "relation": person.relation,
        },
    )
    return result.first() is not None


async def withdraw_other_consent(
    db: AsyncSession, *, account_id: UUID, person_id: UUID, version: str, purposes: Sequence[str], now: datetime
) -> None:
    """Withdraw the standing consent of a guardian unless it is this very one."""
    await db.execute(
        update(Consent)
        .where(
            Consent.person_id == person_id,
            Consent.account_id == account_id,
            Consent.withdrawn_at.is_(None),
            (Consent.version != version) | (Consent.purposes != list(purposes)),
        )
        .values(withdrawn_at=now)
    )


async def add_consent(
    db: AsyncSession,
    *,
    consent_id: UUID,
    account_id: UUID,
    person_id: UUID,
    version: str,
    purposes: Sequence[str],
    now: datetime,
) -> None:
    """Add a consent, unless one stands: then it is the same, and keeps its date."""
    await db.execute(
        insert(Consent)
        .values(
            id=consent_id,
            person_id=person_id,
            account_id=account_id,
            version=version,
            purposes=list(purposes),
            given_at=now,
        )
        .on_conflict_do_nothing(
            index_elements=[Consent.person_id, Consent.account_id], index_where=Consent.withdrawn_at.is_(None)
        )
    )


# All parts see the rows as they were before the statement, hence "another" guardian.
_LEAVE: Final = text("""
    WITH ended AS (
        DELETE FROM guardianship WHERE person_id = :person_id AND account_id = :account_id
    ), withdrawn AS (
        UPDATE consent SET withdrawn_at = :now
        WHERE person_id = :person_id AND account_id = :account_id AND withdrawn_at IS NULL
    ), uninvited AS (
        DELETE FROM guardian_invitation
        WHERE person_id = :person_id AND inviter_id = :account_id AND accepted_at IS NULL
    )
    UPDATE person SET nickname_sealed = ''::bytea, birth_month = substr(birth_month, 1, 4) || '-01',
                      resident_unit_id = NULL, removed_at = :now
    WHERE id = :person_id
        AND NOT EXISTS (SELECT FROM guardianship WHERE person_id = :person_id AND account_id <> :account_id)
    RETURNING id
""")


async def leave_person(db: AsyncSession, *, account_id: UUID, person_id: UUID, now: datetime) -> bool:
    """End a guardianship, its consent and its open invitations; erase the person whose last guardian it was.

    An erased person keeps the year of birth, so that totals by age survive, and neither nickname, month nor unit.
    Returns whether the person was erased. The caller holds the lock of `lock_person`.
    """
    parameters = {"account_id": account_id, "person_id": person_id, "now": now}
    return (await db.execute(_LEAVE, parameters)).first() is not None


# Written out, not built: thousands ask this in the minutes before an opening, and building it costs more than it takes.
_PEOPLE_FOR_PASS: Final = text("""
    SELECT person.id, person.birth_month, person.resident_unit_id,
           coalesce(:purpose = ANY (consent.purposes), false) AS may_book
    FROM guardianship
    JOIN account ON account.id = guardianship.account_id AND account.blocked_at IS NULL
    JOIN person ON person.id = guardianship.person_id AND person.removed_at IS NULL
    LEFT JOIN consent ON consent.person_id = person.id AND consent.account_id = guardianship.account_id
        AND consent.withdrawn_at IS NULL
    WHERE guardianship.account_id = :account_id AND guardianship.person_id = ANY (:person_ids)
""").bindparams(bindparam("person_ids", type_=ARRAY(Uuid)), bindparam("purpose", Purpose.BOOKING.value))


async def people_for_pass(db: AsyncSession, *, account_id: UUID, person_ids: Sequence[UUID]) -> list[PersonFacts]:
    """Return those of the people that the account is a guardian of; none while the account is blocked."""
    rows = await db.execute(_PEOPLE_FOR_PASS, {"account_id": account_id, "person_ids": list(person_ids)})
    return [PersonFacts(*row) for row in rows]
