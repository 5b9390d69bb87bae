"""What a pass asks of the family: only the guardian's own people, and what they consent to at present."""

from uuid import UUID

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts.service import PersonFacts, people_for_pass
from app.core.db import transaction
from app.core.ids import new_id
from tests.accounts.parents import Parent, sign_in, write

pytestmark = pytest.mark.anyio


async def facts(engine: AsyncEngine, parent: Parent, *person_ids: str | UUID) -> dict[str, PersonFacts]:
    async with transaction(engine) as db:
        found = await people_for_pass(
            db, account_id=parent.account_id, person_ids=[UUID(str(person_id)) for person_id in person_ids]
        )
    return {str(person.id): person for person in found}


async def test_a_pass_gets_the_facts_of_the_guardians_own_people_and_of_nobody_else(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    mother, stranger = await sign_in(client), await sign_in(client)
    first, second = await mother.register(), await mother.register(birth_month="2018-11")
    other = await stranger.register()
    found = await facts(engine, mother, first["id"], second["id"], other["id"], new_id())
    assert found == {
        first["id"]: PersonFacts(UUID(first["id"]), "2016-05", None, may_book=True),
        second["id"]: PersonFacts(UUID(second["id"]), "2018-11", None, may_book=True),
    }
    assert await facts(engine, mother) == {}


async def test_a_pass_counts_the_standing_consent_of_this_guardian_only(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    mother, father = await sign_in(client), await sign_in(client)
    person = await mother.register()
    await father.accept(await mother.invite(person["id"]))
    path = f"/v1/me/people/{person['id']}/consent"
    await mother.put(path, {"version": "2026-09", "purposes": ["photo", "statistics"]})
    assert not (await facts(engine, mother, person["id"]))[person["id"]].may_book
    assert (await facts(engine, father, person["id"]))[person["id"]].may_book
    await mother.put(path, {"version": "2026-10", "purposes": ["booking"]})
    assert (await facts(engine, mother, person["id"]))[person["id"]].may_book


async def test_who_has_left_was_erased_or_is_blocked_gets_no_facts(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    mother, father = await sign_in(client), await sign_in(client)
    person = await mother.register()
    await father.accept(await mother.invite(person["id"]))
    await mother.delete(f"/v1/me/people/{person['id']}")
    assert await facts(engine, mother, person["id"]) == {}
    await write(engine, "UPDATE account SET blocked_at = now() WHERE id = :id", id=father.account_id)
    assert await facts(engine, father, person["id"]) == {}
