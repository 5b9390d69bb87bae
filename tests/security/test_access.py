"""Every operation of the API's own document, tried by everybody: only those who may are served; the rest learn nothing.

The same request that is refused to all others is granted to those who may, so what is refused is the access and
nothing else. A refusal leaves the database as it was.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.ids import new_id
from tests.accounts.test_privacy import everything_stored
from tests.security.operations import Operation, operations
from tests.security.policy import RULES, May, Rule
from tests.security.town import (
    Caller,
    Household,
    Town,
    add_child,
    facts_in,
    in_hours,
    make_draft,
    make_published,
    release_of,
    session_at,
)

pytestmark = pytest.mark.anyio

OPERATIONS: Final[Mapping[str, Operation]] = operations()
CASES: Final[Mapping[str, tuple[str, Rule]]] = {
    f"{label}, {rule.may.name.lower()}, {rule.release}": (label, rule)
    for label, rules in RULES.items()
    for rule in rules
}
UNAUTHORIZED: Final = 401


def test_every_operation_says_who_may_and_no_other_is_spoken_of() -> None:
    assert sorted(OPERATIONS) == sorted(RULES), "say in tests/security/policy.py who may"


def test_no_path_names_two_things_of_which_one_could_be_somebody_elses() -> None:
    """Where one does, the sweep has to try each of them with the other's; it knows no such path yet."""
    assert [label for label, operation in OPERATIONS.items() if len(operation.path_parameters) > 1] == []


@pytest.mark.parametrize("label", OPERATIONS)
def test_the_document_says_that_a_token_is_asked_for_where_one_is(label: str) -> None:
    operation = OPERATIONS[label]
    is_public = any(rule.may is May.ANYBODY for rule in RULES[label])
    assert operation.is_open_to_nobody == is_public
    assert is_public or UNAUTHORIZED in operation.refusals


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request that can be sent in anybody's name."""

    operation: Operation
    path: str
    body: object

    async def send(
        self, client: httpx2.AsyncClient, credentials: Mapping[str, str], *, key: str | None = None
    ) -> httpx2.Response:
        """Send it with these credentials, and a key of its own where it takes one."""
        headers = {**credentials, "accept-language": "en"}
        if self.operation.takes_key:
            headers["idempotency-key"] = key or str(new_id())
        return await client.request(self.operation.method, self.path, json=self.body, headers=headers)

    async def send_for_all(
        self, client: httpx2.AsyncClient, callers: Sequence[Caller], town: Town, *, scheme: str = "Bearer"
    ) -> list[tuple[Caller, httpx2.Response]]:
        """Send it in the name of each at once."""
        answers = await asyncio.gather(*(self.send(client, credentials_of(caller, scheme, town)) for caller in callers))
        return list(zip(callers, answers, strict=True))

    @property
    def sent(self) -> str:
        """Return what the request itself tells of the family."""
        return self.path + json.dumps(self.body, ensure_ascii=False)


async def release_for(rule: Rule, town: Town, client: httpx2.AsyncClient) -> dict[str, Any]:
    """Return the release that the ids of a case name; but for the open one, a new one."""
    one_station, both = [session_at(town.here)], [session_at(town.here), session_at(town.elsewhere, starts_in_hours=50)]
    match rule.release:
        case "open":
            return town.open_release
        case "draft":
            return await make_draft(client, town.operator, release_of(*one_station))
        case "upcoming":
            return await make_published(client, town.operator, release_of(*one_station))
        case "shared":
            return await make_published(client, town.operator, release_of(*both))


def filled(value: object, real: Mapping[str, object]) -> Any:
    """Return the document's example with what it names by sample ids and dates replaced by what there is, by field."""
    if isinstance(value, dict):
        members = cast("dict[str, object]", value)
        return {name: real[name] if name in real else filled(inner, real) for name, inner in members.items()}
    if isinstance(value, list):
        return [filled(item, real) for item in cast("list[object]", value)]
    return value


async def prepared(
    operation: Operation, rule: Rule, town: Town, client: httpx2.AsyncClient, family: Household
) -> Attempt:
    """Return the request of this operation for what belongs to the family, and to the station here."""
    release = await release_for(rule, town, client)
    pool_id = release["pools"][0]["id"]
    in_paths = {
        "grant_id": family.grant_id,
        "account_id": family.parent.account_id,
        "person_id": family.person_id,
        "claim_id": family.claim_id,
        "booking_id": family.booking_id,
        "station_id": town.here,
        "release_id": release["id"],
        "pool_id": pool_id,
    }
    assert set(operation.path_parameters) <= in_paths.keys(), "say what this id names, of the family or the town"
    in_bodies = {
        "code": f"demo-{new_id().hex}",
        "openid": f"demo-{new_id().hex}",
        "name": f"示范{new_id().hex[-12:]}",
        "station_id": str(town.here),
        "opens_at": in_hours(1),
        "closes_at": in_hours(24),
        "starts_at": in_hours(48),
        "ends_at": in_hours(49),
        "release": release["id"],
        "people": [family.person_id],
        "choices": [pool_id],
    }
    return Attempt(operation, operation.path.format_map(in_paths), filled(operation.body, in_bodies))


def credentials_of(caller: Caller, scheme: str, town: Town) -> dict[str, str]:
    """Return what a caller has to show: a token, or a genuine pass for a person of their own."""
    if caller.account_id is None:
        return {}
    if scheme == "Pass":
        return {"authorization": f"Pass {town.pass_of(caller.account_id, new_id(), town.open_release)}"}
    return caller.bearer


def assert_refused(answer: httpx2.Response, operation: Operation, caller: Caller, expected: set[int]) -> None:
    assert answer.status_code in expected, (caller.name, answer.status_code, answer.text)
    assert answer.json()["code"] in operation.refusals.get(answer.status_code, ()), (caller.name, answer.text)


def refusals_for(caller: Caller, rule: Rule, operation: Operation) -> set[int]:
    """Return what somebody may hear who is not served."""
    if caller.account_id is None:
        return {rule.refusal} if operation.is_open_to_nobody else {UNAUTHORIZED}
    if caller.is_in_good_standing:
        return {rule.refusal}
    # Blocked or gone: told so where it matters, else as little as everybody else.
    return {UNAUTHORIZED, 403, rule.refusal}


@pytest.mark.parametrize("name", CASES)
async def test_only_those_who_may_are_served_and_nobody_else_learns_or_changes_anything(
    name: str, town: Town, phone: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    label, rule = CASES[name]
    operation = OPERATIONS[label]
    family = await Household.of(town, phone)
    attempt = await prepared(operation, rule, town, phone, family)
    stored = await everything_stored(engine)
    refused = [caller for caller in town.callers if not rule.serves(caller, town)]
    for scheme in operation.schemes or ("Bearer",):
        for caller, answer in await attempt.send_for_all(phone, refused, town, scheme=scheme):
            assert_refused(answer, operation, caller, refusals_for(caller, rule, operation))
            assert facts_in(answer, family, sent=attempt.sent) == [], caller.name
    assert await everything_stored(engine) == stored
    if rule.gives_new:
        await assert_refused_while_blocked(attempt, town, phone, family, engine)
    granted = operation.granted if rule.granted is None else rule.granted
    served = [caller for caller in town.callers if rule.serves(caller, town)]
    for caller, answer in await attempt.send_for_all(phone, served, town):
        assert answer.status_code == granted, (caller.name, answer.text)
        assert rule.tells.issuperset(facts_in(answer, family, sent=attempt.sent)), caller.name
    if rule.may is May.FAMILY:
        await assert_granted_to_the_family(attempt, town, phone, family)
    if rule.may is May.INVITED:
        invited = next(caller for caller in town.callers if caller.name == "another parent")
        welcome = Attempt(operation, attempt.path, filled(attempt.body, {"token": family.invitation}))
        answer = await welcome.send(phone, invited.bearer)
        assert (answer.status_code, answer.json()["id"]) == (granted, family.person_id)


async def assert_refused_while_blocked(
    attempt: Attempt, town: Town, client: httpx2.AsyncClient, family: Household, engine: AsyncEngine
) -> None:
    """Send it in the name of the family, whose account is blocked for so long: it gets nothing new."""
    for change in ("blocked_at = now()", "blocked_at = NULL"):
        async with engine.begin() as db:
            await db.execute(
                text(f"UPDATE account SET {change} WHERE id = :id"),  # noqa: S608 - our own words
                {"id": family.parent.account_id},
            )
        if "now" in change:
            answer = await attempt.send(client, credentials_of(family.parent, "Bearer", town))
            assert_refused(answer, attempt.operation, family.parent, {403, 404})


async def assert_granted_to_the_family(
    attempt: Attempt, town: Town, client: httpx2.AsyncClient, family: Household
) -> None:
    """Send the very same in the name of the family; and what it was answered is answered to nobody else again."""
    operation, key = attempt.operation, str(new_id())
    answer: httpx2.Response | None = None
    for scheme in operation.schemes:
        own = {"authorization": f"Pass {family.gate_pass}"} if scheme == "Pass" else family.parent.bearer
        answer = await attempt.send(client, own, key=key)
        assert answer.status_code == operation.granted, (scheme, answer.text)
    assert answer is not None
    stranger = town.callers[1]
    again = await attempt.send(client, credentials_of(stranger, operation.schemes[0], town), key=key)
    assert again.is_client_error, again.text
    assert facts_in(again, family, sent=attempt.sent) == []


OWN_LISTS: Final = [
    label
    for label, operation in OPERATIONS.items()
    if "cursor" in operation.query_parameters and RULES.get(label, ())[0].may is May.SIGNED_IN
]


@pytest.mark.parametrize("label", OWN_LISTS)
async def test_a_list_of_ones_own_holds_ones_own_whoevers_cursor_is_sent(
    label: str, town: Town, phone: httpx2.AsyncClient
) -> None:
    path = OPERATIONS[label].path
    family, other = [await Household.of(town, phone) for _ in range(2)]
    # A second row, so that the first page of one has another behind it.
    for household in (family, other):
        await add_child(town, phone, household.parent)
    first_page = (await phone.get(path, params={"limit": 1}, headers=family.parent.bearer)).json()
    assert len(first_page["items"]) == 1
    cursor = first_page["next"]
    assert cursor is not None
    for parameters in ({}, {"limit": 1}, {"cursor": cursor}, {"cursor": cursor, "limit": 100}):
        answer = await phone.get(path, params=parameters, headers=other.parent.bearer)
        assert answer.is_success
        assert facts_in(answer, family, sent=cursor) == []
    everything = (await phone.get(path, headers=other.parent.bearer)).json()["items"]
    assert len(everything) == 2
    assert other.person_id in str(everything)
