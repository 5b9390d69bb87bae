"""A second guardian: invited by one, let in once, and equal from then on."""

import asyncio
from datetime import datetime, timedelta

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts import jobs
from app.core.db import transaction
from app.core.settings import Settings
from tests.accounts.parents import CHILD, code_of, one, sign_in, write

pytestmark = pytest.mark.anyio

_EXPIRE = "UPDATE guardian_invitation SET expires_at = now() - interval '1 second' WHERE person_id = :id"


def refusal(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, code_of(response)


async def test_an_invited_guardian_gets_the_person_with_a_relation_and_a_consent_of_their_own(
    client: httpx2.AsyncClient, settings: Settings
) -> None:
    mother, uncle = await sign_in(client), await sign_in(client)
    person = await mother.register()
    response = await mother.post(f"/v1/me/people/{person['id']}/invitations")
    assert response.status_code == 201
    invitation = response.json()
    assert set(invitation) == {"token", "expires_at"}
    hours_left = datetime.fromisoformat(invitation["expires_at"]) - datetime.fromisoformat(person["created_at"])
    assert abs(hours_left - timedelta(hours=settings.invitation_hours)) < timedelta(minutes=2)
    response = await uncle.post(
        "/v1/me/invitations/accept",
        {"token": invitation["token"], "relation": "other", "consent": {"version": "2026-10", "purposes": []}},
    )
    assert response.status_code == 201
    seen = response.json()
    assert seen["consent"]["purposes"] == []
    assert {**seen, "consent": None} == {**person, "relation": "other", "guardians": 2, "consent": None}
    of_mother = (await mother.get(f"/v1/me/people/{person['id']}")).json()
    assert of_mother == {**person, "guardians": 2}


async def test_the_token_is_told_once_and_only_its_hash_is_stored(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    mother = await sign_in(client)
    person = await mother.register()
    token = await mother.invite(person["id"])
    row = await one(
        engine, "SELECT row_to_json(i)::text FROM guardian_invitation i WHERE person_id = :id", id=person["id"]
    )
    assert token not in row
    assert token.encode().hex() not in row


async def test_an_invitation_lets_one_guardian_in_however_many_accept_at_once(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    mother = await sign_in(client)
    others = [await sign_in(client) for _ in range(6)]
    person = await mother.register()
    token = await mother.invite(person["id"])
    answers = await asyncio.gather(*(other.accept(token) for other in others))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409, 409]
    assert {code_of(answer) for answer in answers if answer.status_code == 409} == {"invitation_used"}
    assert await one(engine, "SELECT count(*) FROM guardianship WHERE person_id = :id", id=person["id"]) == 2


async def test_an_acceptance_whose_reply_was_lost_may_be_sent_again(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    mother, father = await sign_in(client), await sign_in(client)
    person = await mother.register()
    token = await mother.invite(person["id"])
    first, second = await father.accept(token), await father.accept(token)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert await one(engine, "SELECT count(*) FROM consent WHERE person_id = :id", id=person["id"]) == 2


async def test_nobody_becomes_a_guardian_twice(client: httpx2.AsyncClient) -> None:
    mother, father = await sign_in(client), await sign_in(client)
    person = await mother.register()
    token = await mother.invite(person["id"])
    assert refusal(await mother.accept(token)) == (409, "already_guardian")
    assert (await father.accept(token)).status_code == 201
    assert refusal(await father.accept(await mother.invite(person["id"]))) == (409, "already_guardian")


async def test_an_unknown_and_an_expired_invitation_are_told_apart(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    mother, father = await sign_in(client), await sign_in(client)
    person = await mother.register()
    assert refusal(await father.accept("never-given-out")) == (404, "not_found")
    token = await mother.invite(person["id"])
    await write(engine, _EXPIRE, id=person["id"])
    assert refusal(await father.accept(token)) == (410, "invitation_expired")


async def test_no_person_has_more_guardians_than_allowed_however_many_accept_at_once(
    client: httpx2.AsyncClient, settings: Settings, engine: AsyncEngine
) -> None:
    mother = await sign_in(client)
    person = await mother.register()
    tokens = [await mother.invite(person["id"]) for _ in range(settings.invitation_open_limit)]
    others = [await sign_in(client) for _ in tokens]
    answers = await asyncio.gather(*(other.accept(token) for other, token in zip(others, tokens, strict=True)))
    accepted = [answer for answer in answers if answer.status_code == 201]
    assert len(accepted) == settings.guardian_limit - 1
    refused = {refusal(answer) for answer in answers if answer.status_code != 201}
    assert refused == {(409, "guardian_limit_reached")}
    count = "SELECT count(*) FROM guardianship WHERE person_id = :id"
    assert await one(engine, count, id=person["id"]) == settings.guardian_limit
    response = await mother.post(f"/v1/me/people/{person['id']}/invitations")
    assert refusal(response) == (409, "guardian_limit_reached")


async def test_an_accepting_account_does_not_exceed_its_own_limit_of_people(
    client: httpx2.AsyncClient, settings: Settings, engine: AsyncEngine
) -> None:
    mother, father = await sign_in(client), await sign_in(client)
    for number in range(settings.people_limit - 1):
        await father.register(nickname=f"孩{number}")
    tokens = [await mother.invite((await mother.register())["id"]) for _ in range(3)]
    answers = await asyncio.gather(*(father.accept(token) for token in tokens), father.post("/v1/me/people", CHILD))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert {refusal(answer) for answer in answers if answer.status_code == 409} == {(409, "people_limit_reached")}
    count = "SELECT count(*) FROM guardianship WHERE account_id = :id"
    assert await one(engine, count, id=father.account_id) == settings.people_limit


async def test_open_invitations_of_a_person_are_bounded_and_expired_ones_make_room(
    client: httpx2.AsyncClient, settings: Settings, engine: AsyncEngine
) -> None:
    mother = await sign_in(client)
    person = await mother.register()
    path = f"/v1/me/people/{person['id']}/invitations"
    answers = await asyncio.gather(*(mother.post(path) for _ in range(settings.invitation_open_limit + 5)))
    assert sum(answer.status_code == 201 for answer in answers) == settings.invitation_open_limit
    refused = {refusal(answer) for answer in answers if answer.status_code != 201}
    assert refused == {(409, "invitation_limit_reached")}
    await write(engine, _EXPIRE, id=person["id"])
    assert (await mother.post(path)).status_code == 201


async def test_the_invitations_of_a_guardian_who_leaves_are_void(client: httpx2.AsyncClient) -> None:
    mother, father, stranger = [await sign_in(client) for _ in range(3)]
    person = await mother.register()
    assert (await father.accept(await mother.invite(person["id"]))).status_code == 201
    of_mother, of_father = await mother.invite(person["id"]), await father.invite(person["id"])
    await mother.delete(f"/v1/me/people/{person['id']}")
    assert refusal(await stranger.accept(of_mother)) == (404, "not_found")
    assert (await stranger.accept(of_father)).status_code == 201


async def test_leaving_while_somebody_accepts_leaves_a_guarded_person_or_an_erased_one(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    state = """SELECT (removed_at IS NOT NULL) || ',' ||
                      (SELECT count(*) FROM guardianship g WHERE g.person_id = p.id)
               FROM person p WHERE id = :id"""
    for _ in range(15):
        mother, father = await sign_in(client), await sign_in(client)
        person = await mother.register()
        token = await mother.invite(person["id"])
        left, accepted = await asyncio.gather(mother.delete(f"/v1/me/people/{person['id']}"), father.accept(token))
        assert left.status_code == 204
        assert accepted.status_code in {201, 404}
        expected = "false,1" if accepted.status_code == 201 else "true,0"
        assert await one(engine, state, id=person["id"]) == expected


async def test_a_guardian_who_left_may_be_invited_again(client: httpx2.AsyncClient) -> None:
    mother, father = await sign_in(client), await sign_in(client)
    person = await mother.register()
    first = await mother.invite(person["id"])
    await father.accept(first)
    await father.delete(f"/v1/me/people/{person['id']}")
    assert refusal(await father.accept(first)) == (409, "invitation_used")
    assert (await father.accept(await mother.invite(person["id"]))).status_code == 201


async def test_the_worker_forgets_invitations_thirty_days_after_they_expired(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    mother = await sign_in(client)
    gone, kept = await mother.register(), await mother.register()
    await mother.invite(gone["id"])
    await mother.invite(kept["id"])
    age = "UPDATE guardian_invitation SET expires_at = now() - :days * interval '1 day' WHERE person_id = :id"
    await write(engine, age, id=gone["id"], days=31)
    await write(engine, age, id=kept["id"], days=29)
    now = await one(engine, "SELECT now()")
    async with transaction(engine) as db:
        assert await jobs.forget_expired_invitations(db, now) >= 1
    count = "SELECT count(*) FROM guardian_invitation WHERE person_id = :id"
    assert await one(engine, count, id=gone["id"]) == 0
    assert await one(engine, count, id=kept["id"]) == 1
