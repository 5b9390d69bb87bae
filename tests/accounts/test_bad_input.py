"""What malformed requests get: a problem that names the field, never a 500, never a half-made person."""

import json
from typing import Any

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.settings import Settings
from tests.accounts.parents import CHILD, code_of, one, sign_in

pytestmark = pytest.mark.anyio

_CONSENT: dict[str, Any] = CHILD["consent"]

PEOPLE: list[tuple[str, object, str]] = [
    ("nickname", "", "nickname"),
    ("nickname", "   ", "nickname"),
    ("nickname", "长" * 41, "nickname"),
    ("nickname", "a\x00b", "nickname"),
    ("nickname", "a\nb", "nickname"),
    ("nickname", "a\u202eb", "nickname"),
    ("nickname", None, "nickname"),
    ("nickname", 7, "nickname"),
    ("nickname", ["小满"], "nickname"),
    ("birth_month", "2016-13", "birth_month"),
    ("birth_month", "2016-00", "birth_month"),
    ("birth_month", "2016-5", "birth_month"),
    ("birth_month", "2016-05-01", "birth_month"),
    ("birth_month", "1899-12", "birth_month"),
    ("birth_month", "0001-01", "birth_month"),
    ("birth_month", "２０１６-05", "birth_month"),
    ("birth_month", "2016-05\n", "birth_month"),
    ("birth_month", 201605, "birth_month"),
    ("birth_month", None, "birth_month"),
    ("relation", "aunt", "relation"),
    ("relation", None, "relation"),
    ("resident_unit_id", "not-an-id", "resident_unit_id"),
    ("resident_unit_id", 7, "resident_unit_id"),
    ("resident_unit_id", "", "resident_unit_id"),
    ("consent", None, "consent"),
    ("consent", [], "consent"),
    ("consent", {**_CONSENT, "purposes": ["booking", "advertising"]}, "consent.purposes[1]"),
    ("consent", {**_CONSENT, "purposes": "booking"}, "consent.purposes"),
    ("consent", {**_CONSENT, "purposes": ["booking"] * 100}, "consent.purposes"),
    ("consent", {**_CONSENT, "purposes": None}, "consent.purposes"),
    ("consent", {**_CONSENT, "version": ""}, "consent.version"),
    ("consent", {**_CONSENT, "version": "v" * 33}, "consent.version"),
    ("consent", {**_CONSENT, "version": 1}, "consent.version"),
    ("consent", {**_CONSENT, "signature": "x"}, "consent.signature"),
    ("consent", {"purposes": ["booking"]}, "consent.version"),
    ("real_name", "nobody", "real_name"),
    ("id_number", "31010000000000000X", "id_number"),
]


@pytest.mark.parametrize(("field", "value", "named"), PEOPLE)
async def test_a_wrong_field_of_a_person_is_named_and_nothing_is_stored(
    client: httpx2.AsyncClient, field: str, value: object, named: str
) -> None:
    parent = await sign_in(client)
    person = await parent.register()
    body = {**CHILD, field: value}
    for response in (
        await parent.post("/v1/me/people", body),
        await parent.put(f"/v1/me/people/{person['id']}", body),
    ):
        assert (response.status_code, code_of(response)) == (422, "validation_failed")
        assert [error["field"] for error in response.json()["errors"]] == [named]
    assert (await parent.get("/v1/me/people")).json()["items"] == [person]


@pytest.mark.parametrize("field", ["nickname", "birth_month", "relation", "consent"])
async def test_a_missing_field_of_a_person_is_named(client: httpx2.AsyncClient, field: str) -> None:
    parent = await sign_in(client)
    response = await parent.post("/v1/me/people", {name: value for name, value in CHILD.items() if name != field})
    assert response.json()["errors"][0]["field"] == field
    assert response.json()["errors"][0]["code"] == "missing"


WRITES = [
    ("POST", "/v1/auth/wechat"),
    ("POST", "/v1/auth/refresh"),
    ("POST", "/v1/auth/logout"),
    ("POST", "/v1/me/people"),
    ("PUT", "/v1/me/people/0197a3c2-5b1e-7c40-9a52-0d6f1f0b7f11"),
    ("PUT", "/v1/me/people/0197a3c2-5b1e-7c40-9a52-0d6f1f0b7f11/consent"),
    ("POST", "/v1/me/invitations/accept"),
]

BODIES: list[tuple[bytes, str, int, str]] = [
    (b"{", "application/json", 400, "malformed_json"),
    (b"\xff\xfe", "application/json", 400, "malformed_json"),
    (b"null", "application/json", 422, "validation_failed"),
    (b"[]", "application/json", 422, "validation_failed"),
    (b'"x"', "application/json", 422, "validation_failed"),
    (b"{}", "application/json", 422, "validation_failed"),
    (b'{"nothing_of_ours": 1}', "application/json", 422, "validation_failed"),
    (b"", "application/json", 422, "validation_failed"),
    (b"{}", "text/plain", 415, "unsupported_media_type"),
    (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    (b'{"a": "' + b"x" * 70_000 + b'"}', "application/json", 413, "body_too_large"),
]


@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_every_write_refuses_what_is_no_body_for_it(client: httpx2.AsyncClient, method: str, path: str) -> None:
    parent = await sign_in(client)
    for content, content_type, status, code in BODIES:
        headers = {**parent.headers, "Content-Type": content_type}
        response = await client.request(method, path, headers=headers, content=content)
        assert (response.status_code, code_of(response)) == (status, code), content[:40]


@pytest.mark.parametrize(
    "text", ["", " ", "a b", "\x00", "é", "\ud800", "x" * 129, 7, None, True, ["x"], {"a": 1}], ids=repr
)
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/auth/wechat", "code"),
        ("/v1/auth/refresh", "refresh_token"),
        ("/v1/auth/logout", "refresh_token"),
        ("/v1/me/invitations/accept", "token"),
    ],
)
async def test_a_token_or_code_that_cannot_be_one_is_refused_before_anything_is_asked(
    client: httpx2.AsyncClient, path: str, field: str, text: object
) -> None:
    parent = await sign_in(client)
    content = json.dumps({field: text, "relation": "child", "consent": _CONSENT} if "accept" in path else {field: text})
    headers = {**parent.headers, "Content-Type": "application/json"}
    response = await client.post(path, headers=headers, content=content)
    assert response.status_code in {400, 422}
    assert code_of(response) in {"validation_failed", "malformed_json"}
    if response.status_code == 422:
        assert response.json()["errors"][0]["field"] == field


@pytest.mark.parametrize("person_id", ["7", "not-an-id", "0197a3c2-5b1e-7c40-9a52", "%00", "..%2f.."])
async def test_an_id_that_is_none_breaks_nothing(client: httpx2.AsyncClient, person_id: str) -> None:
    parent = await sign_in(client)
    for response in (
        await parent.get(f"/v1/me/people/{person_id}"),
        await parent.delete(f"/v1/me/people/{person_id}"),
        await parent.put(f"/v1/me/people/{person_id}", CHILD),
        await parent.post(f"/v1/me/people/{person_id}/invitations"),
    ):
        assert response.status_code in {404, 422}
        assert code_of(response) in {"not_found", "validation_failed"}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "cursor=x", "cursor=%00", "cursor=WyJ4Il0", "cursor=W10"]
)
async def test_a_page_that_cannot_be_is_refused(client: httpx2.AsyncClient, query: str) -> None:
    parent = await sign_in(client)
    response = await parent.get(f"/v1/me/people?{query}")
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert response.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_a_consent_version_that_is_not_in_force_is_refused_where_versions_are_listed(
    client: httpx2.AsyncClient, api: Any, settings: Settings, engine: AsyncEngine
) -> None:
    parent = await sign_in(client)
    person = await parent.register()
    api.state.settings = settings.model_copy(update={"consent_versions": "2026-10, 2026-11"})
    for response in (
        await parent.post("/v1/me/people", CHILD),
        await parent.put(f"/v1/me/people/{person['id']}", CHILD),
        await parent.put(f"/v1/me/people/{person['id']}/consent", _CONSENT),
        await parent.accept("whatever"),
    ):
        assert (response.status_code, code_of(response)) == (422, "unknown_consent_version")
        assert response.json()["known"] == ["2026-10", "2026-11"]
    assert (await parent.register(consent={"version": "2026-11", "purposes": []}))["consent"]["version"] == "2026-11"
    count = "SELECT count(*) FROM guardianship WHERE account_id = :id"
    assert await one(engine, count, id=parent.account_id) == 2
