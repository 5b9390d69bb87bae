"""What bad input to the grab gets: its own stable code, never a 500, never a half-made booking."""

import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx2
import pytest

from app.booking.gate.passes import PassSigner
from app.core.settings import Settings
from tests.booking.claims.conftest import Family, MakeFamily
from tests.booking.gate.builders import MadeRelease, Phone, make_release

if TYPE_CHECKING:
    import asyncpg

    Db = asyncpg.Connection[asyncpg.Record]

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Case:
    """A release, a family of two with a good pass, and the body that would be right."""

    made: MadeRelease
    other: MadeRelease
    family: Family
    body: dict[str, Any]
    db: "Db"

    async def send(self, body: object, *, path: str | None = None, **headers: str) -> httpx2.Response:
        """Send a body, bytes as they are and anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", "authorization": f"Pass {self.family.phone.text}"} | headers
        return await self.family.client.put(path or f"/v1/claims/{uuid4()}", content=content, headers=sent)


@pytest.fixture
async def case(db: "Db", make_family: MakeFamily) -> AsyncGenerator[Case]:
    made, other = await make_release(db, capacities=(5, 5)), await make_release(db, capacities=(5,))
    family = await make_family("bad-input", made, people=2)
    body = {
        "release": str(made.release_id),
        "people": [str(person) for person in family.phone.people],
        "choices": [str(pool) for pool in made.pools],
    }
    yield Case(made, other, family, body, db)
    # Whatever was sent, nothing of it was booked.
    for release in (made, other):
        assert await db.fetchval("SELECT count(*) FROM claim WHERE release_id = $1", release.release_id) == 0


Change = Callable[[Case], object]


def changed(**fields: Any) -> Change:
    """Return the right body with these fields otherwise."""
    return lambda case: case.body | fields


FIELD_CASES: dict[str, tuple[Change, str, str]] = {
    "an unknown field": (changed(colour="red"), "colour", "unknown_field"),
    "a field of the wrong type": (changed(people="everybody"), "people", "wrong_type"),
    "a flag that is a word": (changed(together="yes"), "together", "wrong_type"),
    "a number among the ids": (changed(people=[5]), "people[0]", "wrong_type"),
    "an id that is none": (changed(release="tomorrow"), "release", "bad_format"),
    "an id with a NUL": (changed(release="\x00" * 36), "release", "bad_format"),
    "an over-long string": (changed(release="a" * 5_000), "release", "bad_format"),
    "null for an id": (changed(release=None), "release", "wrong_type"),
    "no people": (changed(people=[]), "people", "too_short"),
    "no choices": (changed(choices=[]), "choices", "too_short"),
    "a hundred people": (changed(people=[str(uuid4()) for _ in range(100)]), "people", "too_long"),
    "a hundred choices": (changed(choices=[str(uuid4()) for _ in range(100)]), "choices", "too_long"),
    "the same person twice": (
        lambda case: case.body | {"people": case.body["people"][:1] * 2},
        "people[1]",
        "duplicate",
    ),
    "the same pool twice": (
        lambda case: case.body | {"choices": case.body["choices"][:1] * 2},
        "choices[1]",
        "duplicate",
    ),
    "a pool of another release": (
        lambda case: case.body | {"choices": [str(case.other.pools[0])]},
        "choices[0]",
        "unknown_pool",
    ),
    "a missing field": (lambda case: {k: v for k, v in case.body.items() if k != "choices"}, "choices", "missing"),
    "a list instead of an object": (lambda _: [], "body", "wrong_type"),
}


@pytest.mark.parametrize("name", FIELD_CASES)
async def test_a_wrong_field_is_named_with_what_is_wrong(case: Case, name: str) -> None:
    change, field, code = FIELD_CASES[name]
    answer = await case.send(change(case))
    own_codes = {
        "a hundred people": "too_many_people",
        "the same person twice": "duplicate_person",
        "the same pool twice": "duplicate_choice",
        "a pool of another release": "unknown_pool",
    }
    expected = own_codes.get(name, "validation_failed")
    assert (answer.status_code, answer.json()["code"]) == (422, expected), answer.text
    assert (field, code) in [(error["field"], error["code"]) for error in answer.json()["errors"]]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"not json",
        b'{"release": NaN}',
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b"[" * 50_000,
        b'{"a":' * 10_000,
        b'{"\\ud800": 1}',
    ],
)
async def test_what_is_not_json_is_said_to_be_none(case: Case, body: bytes) -> None:
    answer = await case.send(body)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")


async def test_a_body_of_more_than_64_kib_is_refused(case: Case) -> None:
    answer = await case.send(b" " * 65_537)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


async def test_a_body_of_another_media_type_is_refused(case: Case) -> None:
    answer = await case.send(case.body, **{"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_a_claim_id_that_is_none_is_refused(case: Case) -> None:
    answer = await case.send(case.body, path="/v1/claims/mine")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "claim_id")


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_another_method_hears_which_there_are(case: Case, method: str) -> None:
    answer = await case.family.client.request(method, f"/v1/claims/{uuid4()}", json=case.body)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"


async def test_without_a_pass_nobody_claims(case: Case) -> None:
    for authorization in ("", case.family.headers["Authorization"], "Pass", "Basic abc"):
        answer = await case.send(case.body, authorization=authorization)
        assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


async def test_a_forged_pass_is_invalid(case: Case) -> None:
    signer = PassSigner("somebody-else's-key-that-is-long-enough")
    forged = Phone.with_pass(signer, case.made, people=case.family.phone.people, account=case.family.phone.account)
    answer = await case.send(case.body, authorization=f"Pass {forged.text}")
    assert (answer.status_code, answer.json()["code"]) == (403, "pass_invalid")


async def test_a_pass_for_another_release_is_invalid(case: Case, settings: Settings) -> None:
    signer = PassSigner(settings.pass_key.get_secret_value())
    foreign = Phone.with_pass(signer, case.other, people=case.family.phone.people)
    answer = await case.send(case.body, authorization=f"Pass {foreign.text}")
    assert (answer.status_code, answer.json()["code"]) == (403, "pass_invalid")


async def test_an_expired_pass_is_told_so(case: Case, settings: Settings) -> None:
    signer = PassSigner(settings.pass_key.get_secret_value())
    old = Phone.with_pass(signer, case.made, people=case.family.phone.people, expires_ms=1)
    answer = await case.send(case.body, authorization=f"Pass {old.text}")
    assert (answer.status_code, answer.json()["code"]) == (403, "pass_expired")


async def test_a_person_who_is_not_on_the_pass_cannot_be_booked(case: Case) -> None:
    stranger = str(uuid4())
    answer = await case.send(case.body | {"people": [stranger]})
    assert (answer.status_code, answer.json()["code"]) == (403, "not_eligible")
    assert answer.json()["person"] == stranger


async def test_a_release_that_does_not_exist_is_not_found(case: Case, settings: Settings) -> None:
    signer = PassSigner(settings.pass_key.get_secret_value())
    nowhere = MadeRelease(uuid4(), case.made.pools, case.made.capacities)
    phone = Phone.with_pass(signer, nowhere)
    request = phone.claim()
    answer = await case.family.client.put(request.path, content=request.body, headers=phone.headers)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", [f"/v1/releases/{UUID(int=7)}/availability", "/v1/releases/nonsense/availability"])
async def test_what_is_left_of_nothing_is_a_problem_too(case: Case, path: str) -> None:
    answer = await case.family.client.get(path)
    assert (answer.status_code, answer.json()["code"]) in {(404, "not_found"), (422, "validation_failed")}


async def test_a_problem_speaks_the_language_that_is_asked_for(case: Case) -> None:
    english = await case.send(b"{", **{"accept-language": "en-GB,zh;q=0.5"})
    chinese = await case.send(b"{")
    assert english.json()["title"] == "The body is not JSON"
    assert chinese.json()["title"] == "请求体不是合法的 JSON"
    assert english.headers["content-type"] == "application/problem+json"
    assert english.json()["request_id"] == english.headers["x-request-id"]


async def test_a_claim_id_with_another_body_is_a_mismatch(db: "Db", make_family: MakeFamily) -> None:
    made = await make_release(db, capacities=(5, 5))
    family, stranger = await make_family("one", made), await make_family("other", made)
    claim = (await family.grab(0)).json()["claim"]

    for answer in (await family.grab(1, claim_id=claim), await stranger.grab(0, claim_id=claim)):
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
        assert "bookings" not in answer.json()
    assert (await family.grab(0, claim_id=claim)).status_code == 200
