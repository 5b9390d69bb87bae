"""Issues passes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.service import people_for_pass
from app.booking.gate.errors import DuplicatePerson
from app.booking.gate.orders import repeated
from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of
from app.booking.passes.errors import UnknownPerson
from app.booking.passes.policy import Refusal, refusal
from app.booking.passes.queries import ReleaseConditions, release_conditions
from app.core.clock import to_ms
from app.core.problems import FieldError, NotFound


@dataclass(frozen=True, slots=True)
class PersonOnPass:
    """One person of a pass: the pools they may claim, and why not the others."""

    id: UUID
    pools: tuple[UUID, ...]
    refused: tuple[tuple[UUID, Refusal], ...]
    # Seconds after the opening from which on this person may claim: nobody is delayed as yet.
    delay_s: int = 0


@dataclass(frozen=True, slots=True)
class IssuedPass:
    """A signed pass and what it says, for the phone to show."""

    text: str
    expires_at: datetime
    opens_at: datetime
    people: tuple[PersonOnPass, ...]


async def issue_pass(
    db: AsyncSession,
    *,
    signer: PassSigner,
    account_id: UUID,
    release_id: UUID,
    person_ids: Sequence[UUID],
    now: datetime,
    lifetime: timedelta,
) -> IssuedPass:
    """Answer for each person which pools they may claim, and sign it.

    Raises `DuplicatePerson` where somebody is named twice, `NotFound` for a release that is not published,
    `UnknownPerson` for people of others or of nobody: the two are not told apart.
    """
    if errors := repeated("people", person_ids):
        raise DuplicatePerson(errors=errors)
    conditions = await release_conditions(db, release_id=release_id)
    if conditions is None:
        raise NotFound
    facts = {person.id: person for person in await people_for_pass(db, account_id=account_id, person_ids=person_ids)}
    strangers = [
        FieldError(f"people[{index}]", "unknown_person")
        for index, person_id in enumerate(person_ids)
        if person_id not in facts
    ]
    if strangers:
        raise UnknownPerson(errors=strangers)
    people: list[PersonOnPass] = []
    for person_id in person_ids:
        person = facts[person_id]
        verdicts = [
            (
                pool.id,
                refusal(
                    birth_month=person.birth_month,
                    resident_unit_id=person.resident_unit_id,
                    may_book=person.may_book,
                    pool=pool,
                ),
            )
            for pool in conditions.pools
        ]
        people.append(
            PersonOnPass(
                person_id,
                tuple(pool for pool, why in verdicts if why is None),
                tuple((pool, why) for pool, why in verdicts if why is not None),
            )
        )
    expires_at = now + lifetime
    contents = Pass.of(release_id, account_id, to_ms(expires_at), _signed_people(people, conditions))
    return IssuedPass(signer.sign(contents), expires_at, conditions.opens_at, tuple(people))


def _signed_people(people: Sequence[PersonOnPass], conditions: ReleaseConditions) -> tuple[PassPerson, ...]:
    ordinals = {pool.id: pool.ordinal for pool in conditions.pools}
    return tuple(
        PassPerson(person.id.bytes, mask_of({ordinals[pool] for pool in person.pools}), person.delay_s * 1000)
        for person in people
    )
