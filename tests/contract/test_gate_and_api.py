"""The gate answers for itself, in front of the API; a caller must not be able to tell which of the two refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest

from app.booking.gate.passes import PassSigner
from app.core.settings import Settings
from tests.booking.gate.builders import MadeRelease, Phone, make_release
from tests.conftest import SignIn
from tests.contract.line import connected, message

pytestmark = pytest.mark.anyio

SOMEBODY: Final = str(uuid4())
REQUEST_ID: Final = "phone-0001"
# The limiter of the API, which the gate has none of: it counts claims by pass, without asking Redis.
LIMITER_HEADERS: Final = frozenset({"ratelimit", "ratelimit-policy"})
# Each endpoint has methods and a challenge of its own.
OWN_VALUES: Final = frozenset({"allow", "www-authenticate", "content-length", "date"})
JSON: Final = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Both:
    """The grab, which the gate answers, and the pass, which the API answers: both take `people`."""

    client: httpx2.AsyncClient
    made: MadeRelease
    phone: Phone
    bearer: dict[str, str]

    async def send(
        self, people: str, *, signed_in: bool = True, method: str = "", headers: Mapping[str, str] | None = None
    ) -> tuple[httpx2.Response, httpx2.Response]:
        """Send a body to both. One that begins with `{` gets the other members that the gate wants put in front."""
        rest = f'"release": "{self.made.release_id}", "choices": ["{self.made.pools[0]}"]'
        sent = JSON | {"x-request-id": REQUEST_ID} | dict(headers or {})
        as_phone = {"authorization": f"Pass {self.phone.text}"} if signed_in else {}
        gate = await self.client.request(
            method or "PUT",
            f"/v1/claims/{uuid4()}",
            content=people if people[:1] != "{" else "{" + rest + people[1:],
            headers=sent | as_phone,
        )
        api = await self.client.request(
            method or "POST",
            f"/v1/releases/{self.made.release_id}/pass",
            content=people if people[:1] != "{" else "{" + people[1:].removeprefix(", "),
            headers=sent | (self.bearer if signed_in else {}),
        )
        return gate, api


@pytest.fixture
async def both(
    client: httpx2.AsyncClient, db: "asyncpg.Connection[asyncpg.Record]", sign_in: SignIn, settings: Settings
) -> Both:
    made = await make_release(db)
    phone = Phone.with_pass(PassSigner(settings.pass_key.get_secret_value()), made, people=(UUID(SOMEBODY), uuid4()))
    return Both(client, made, phone, await sign_in("both"))


def assert_same_headers(gate: httpx2.Response, api: httpx2.Response) -> None:
    seen = [
        {name: value for name, value in answer.headers.items() if name not in LIMITER_HEADERS} for answer in (gate, api)
    ]
    assert seen[0].keys() == seen[1].keys()
    assert {name for name in seen[0] if seen[0][name] != seen[1][name]} <= OWN_VALUES
    for answer in (gate, api):
        assert answer.headers["x-request-id"] == REQUEST_ID
        assert answer.headers["x-content-type-options"] == "nosniff"


def assert_same_problem(gate: httpx2.Response, api: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert_same_headers(gate, api)
    said: dict[str, Any] = gate.json()
    assert (gate.status_code, said["code"]) == (status, code), said
    assert said["request_id"] == REQUEST_ID
    heard: dict[str, Any] = api.json()
    assert said.keys() == heard.keys()
    # Where a fault was found depends on the body; what each challenge asks for is the endpoint's own.
    own = {"position", "detail"}
    assert {name: said[name] for name in said if name not in own} == {
        name: heard[name] for name in heard if name not in own
    }
    return said


DEEP: Final = "[" * 40 + "]" * 40
BODIES: Final[dict[str, tuple[str, int, str]]] = {
    "no body": ("", 422, "validation_failed"),
    "no JSON": ("people", 400, "malformed_json"),
    "a body that ends too early": ('{, "people": [', 400, "malformed_json"),
    "a list": ("[]", 422, "validation_failed"),
    "a name twice": (f'{{, "people": ["{SOMEBODY}"], "people": ["{SOMEBODY}"]}}', 400, "malformed_json"),
    "a name twice, once with an escape": (
        f'{{, "people": ["{SOMEBODY}"], "p\\u0065ople": ["{SOMEBODY}"]}}',
        400,
        "malformed_json",
    ),
    "a name twice, first of a wrong type": (f'{{, "people": 5, "people": ["{SOMEBODY}"]}}', 400, "malformed_json"),
    "no number": ('{, "people": [NaN]}', 400, "malformed_json"),
    "a number that is too long": (f'{{, "people": [{"9" * 60}]}}', 400, "malformed_json"),
    "half a surrogate pair": ('{, "people": ["\\ud800"]}', 400, "malformed_json"),
    "a body that is too deep": (f'{{, "people": {DEEP}}}', 400, "malformed_json"),
    "a missing field": ("{}", 422, "validation_failed"),
    "an unknown field": (f'{{, "people": ["{SOMEBODY}"], "colour": 1}}', 422, "validation_failed"),
    "an unknown field that cannot be printed": (
        f'{{, "people": ["{SOMEBODY}"], "{"x" * 200}\\u202e": 1}}',
        422,
        "validation_failed",
    ),
    "a wrong type": ('{, "people": "all"}', 422, "validation_failed"),
    "null": ('{, "people": null}', 422, "validation_failed"),
    "an id that is none": ('{, "people": ["me"]}', 422, "validation_failed"),
    "nobody": ('{, "people": []}', 422, "validation_failed"),
    "somebody twice": (f'{{, "people": ["{SOMEBODY}", "{SOMEBODY}", "{SOMEBODY}"]}}', 422, "duplicate_person"),
    "too much": ("{" + " " * 66_000 + "}", 413, "body_too_large"),
}


@pytest.mark.parametrize("language", ["zh-CN", "en"])
@pytest.mark.parametrize("fault", BODIES)
async def test_a_bad_body_is_refused_alike(both: Both, fault: str, language: str) -> None:
    people, status, code = BODIES[fault]
    gate, api = await both.send(people, headers={"accept-language": language})
    assert_same_problem(gate, api, status, code)
    assert gate.headers["content-language"] == language
    assert gate.headers["vary"] == "Accept-Language"
    assert gate.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("media_type", ["text/plain", "application/json; charset=gbk"])
async def test_another_media_type_is_refused_alike(both: Both, media_type: str) -> None:
    gate, api = await both.send(f'{{, "people": ["{SOMEBODY}"]}}', headers={"content-type": media_type})
    assert_same_problem(gate, api, 415, "unsupported_media_type")


async def test_nobody_is_refused_alike(both: Both) -> None:
    gate, api = await both.send(f'{{, "people": ["{SOMEBODY}"]}}', signed_in=False)
    assert_same_problem(gate, api, 401, "not_authenticated")
    assert (gate.headers["www-authenticate"], api.headers["www-authenticate"]) == ("Pass", "Bearer")


async def test_of_a_header_that_comes_twice_the_first_counts_for_both(both: Both) -> None:
    unknown = f"/v1/claims/{uuid4()}"
    passes = [("authorization", f"Pass {both.phone.text}"), ("authorization", "Pass of-somebody-else")]
    tokens = [("authorization", both.bearer["Authorization"]), ("authorization", "Bearer of-somebody-else")]
    for order, statuses in ((1, (404, 200)), (-1, (403, 401))):
        gate = await both.client.get(unknown, headers=passes[::order])
        api = await both.client.get("/v1/me", headers=tokens[::order])
        assert (gate.status_code, api.status_code) == statuses


async def test_another_method_is_refused_alike(both: Both) -> None:
    gate, api = await both.send("", method="PATCH")
    assert_same_problem(gate, api, 405, "method_not_allowed")


async def test_an_id_in_the_path_that_is_none_is_refused_alike(both: Both) -> None:
    sent = {"x-request-id": REQUEST_ID}
    gate = await both.client.get("/v1/releases/mine/availability", headers=sent)
    api = await both.client.get("/v1/releases/mine", headers=sent)
    assert_same_problem(gate, api, 422, "validation_failed")


async def test_what_is_not_there_is_refused_alike(both: Both) -> None:
    sent, nothing = {"x-request-id": REQUEST_ID}, uuid4()
    gate = await both.client.get(f"/v1/releases/{nothing}/availability", headers=sent)
    api = await both.client.get(f"/v1/releases/{nothing}", headers=sent)
    assert_same_problem(gate, api, 404, "not_found")


async def test_what_is_granted_carries_the_headers_of_every_answer(both: Both) -> None:
    """Against an answer of the API that nothing is special about."""
    api = await both.client.get("/v1/time", headers={"x-request-id": REQUEST_ID})
    # Somebody who has no place yet, in whichever way the requests are carried.
    request = both.phone.claim(people=both.phone.people[1:])
    headers = both.phone.headers | {"x-request-id": REQUEST_ID}
    for status in (201, 200):
        gate = await both.client.put(request.path, content=request.body, headers=headers)
        assert gate.status_code == status, gate.text
        assert_same_headers(gate, api)


async def test_a_poll_keeps_its_own_caching_and_carries_the_rest(both: Both) -> None:
    path, sent = f"/v1/releases/{both.made.release_id}/availability", {"x-request-id": REQUEST_ID}
    first = await both.client.get(path, headers=sent)
    again = await both.client.get(path, headers=sent | {"if-none-match": first.headers["etag"]})
    anything = await both.client.get(path, headers=sent | {"if-none-match": "*"})
    assert (first.status_code, again.status_code, anything.status_code) == (200, 304, 304)
    for answer in (first, again):
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-request-id"] == REQUEST_ID
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("given", ["short", "x" * 65, 'forged", "level": "error'])
async def test_a_request_id_that_is_no_token_is_replaced_alike(both: Both, given: str) -> None:
    for answer in await both.send("[]", headers={"x-request-id": given}):
        assert answer.headers["x-request-id"] != given
        assert len(answer.headers["x-request-id"]) == 24
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_a_body_announced_too_large_is_refused_before_it_is_sent(both: Both, address: str) -> None:
    sent = JSON | {"content-length": "9999999", "expect": "100-continue", "x-request-id": REQUEST_ID}
    told: list[dict[str, str]] = []
    for method, path, who in (
        ("PUT", both.phone.claim().path, both.phone.headers),
        ("POST", f"/v1/releases/{both.made.release_id}/pass", both.bearer),
    ):
        async with connected(address) as line:
            heard = await line.ask(message(method, path, headers=who | sent))
            assert (heard.status, heard.word, heard.headers["connection"]) == (413, "body_too_large", "close")
            told.append({name: heard.headers[name] for name in heard.headers.keys() - LIMITER_HEADERS - OWN_VALUES})
    assert told[0].items() >= {"x-request-id": REQUEST_ID}.items()
    assert told[0].keys() == told[1].keys()
