import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest
import structlog
from starlette.types import ASGIApp, Message

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
SOUND = {"title": "书法班"}


def problem_of(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    document: dict[str, Any] = answer.json()
    assert (answer.status_code, document["code"]) == (status, code), document
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert document["type"] == f"/docs/errors#{code}"
    assert document["status"] == status
    assert document["request_id"] == answer.headers["X-Request-Id"]
    return document


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "syntax"),
        (b'{"title": "x",}', "syntax"),
        (b'{"title": "x"} {}', "syntax"),
        (b"[" * 65_000, "too_deep"),
        (b'{"a":' * 10_000, "too_deep"),
        (b'{"title": NaN}', "not_finite"),
        (b'{"title": -Infinity}', "not_finite"),
        (b'{"title": 1e999}', "not_finite"),
        (b'{"title": ' + b"9" * 6_000 + b"}", "number_too_long"),
        (b'{"title": "x", "title": "y"}', "duplicate_name"),
        (b'{"title": "x", "people": [{"id": 1, "id": 2}]}', "duplicate_name"),
        (b'{"title": "\\ud800"}', "bad_text"),
        (b'{"\\udfff": 1}', "bad_text"),
        (b'{"title": "\xff"}', "not_utf_8"),
        ('{"title": "x"}'.encode("utf-16"), "not_utf_8"),
        (b"\x00", "syntax"),
    ],
)
async def test_a_body_that_is_not_sound_json_is_malformed(probed: httpx2.AsyncClient, body: bytes, reason: str) -> None:
    answer = await probed.post("/probe/bodies", content=body, headers=JSON)
    document = problem_of(answer, 400, "malformed_json")
    assert document["errors"][0]["code"] == reason


async def test_malformed_json_says_where(probed: httpx2.AsyncClient) -> None:
    answer = await probed.post("/probe/bodies", content=b'{"title" "x"}', headers=JSON)
    assert problem_of(answer, 400, "malformed_json")["position"] == 9


async def test_brackets_in_texts_are_no_depth(probed: httpx2.AsyncClient) -> None:
    answer = await probed.post("/probe/bodies", json={"title": "x", "note": '["\\' * 500})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"title": None}, "title", "wrong_type"),
        ({"title": 5}, "title", "wrong_type"),
        ({"title": ""}, "title", "too_short"),
        ({"title": "x" * 41}, "title", "too_long"),
        ({"title": "a\x00b"}, "title", "nul_character"),
        ({"title": "a\nb"}, "title", "control_character"),
        ({"title": "a\u202eb"}, "title", "control_character"),
        ({"title": " \u3000 "}, "title", "blank"),
        ({"note": "a\x00b"}, "note", "nul_character"),
        ({"count": "1"}, "count", "wrong_type"),
        ({"count": True}, "count", "wrong_type"),
        ({"count": 1.0}, "count", "wrong_type"),
        ({"open": 1}, "open", "wrong_type"),
        ({"open": "yes"}, "open", "wrong_type"),
        ({"at": "2026-07-01T09:00:00"}, "at", "no_time_zone"),
        ({"at": "2026-07-01"}, "at", "bad_format"),
        ({"at": "2026-02-31T09:00:00Z"}, "at", "bad_format"),
        ({"at": "9999-01-01T09:00:00Z"}, "at", "bad_format"),
        ({"at": 1782867600}, "at", "wrong_type"),
        ({"surname": "x"}, "surname", "unknown_field"),
        ({"people": {}}, "people", "wrong_type"),
        ({"people": [{"id": "7", "nickname": "x"}]}, "people[0].id", "bad_format"),
        ({"people": [{"id": 7, "nickname": "x"}]}, "people[0].id", "wrong_type"),
        ({"people": [{"nickname": "x"}]}, "people[0].id", "missing"),
    ],
)
async def test_a_wrong_field_is_named_with_its_code(
    probed: httpx2.AsyncClient, change: dict[str, object], field: str, code: str
) -> None:
    answer = await probed.post("/probe/bodies", json=SOUND | change, headers={"Accept-Language": "en"})
    document = problem_of(answer, 422, "validation_failed")
    assert [(error["field"], error["code"]) for error in document["errors"]] == [(field, code)]
    assert document["errors"][0]["message"]


@pytest.mark.parametrize("body", [b"[]", b"5", b'"x"', b"null", b""])
async def test_a_body_that_is_no_object_is_refused(probed: httpx2.AsyncClient, body: bytes) -> None:
    answer = await probed.post("/probe/bodies", content=body, headers=JSON)
    assert problem_of(answer, 422, "validation_failed")["errors"][0]["field"] == "body"


async def test_at_most_twenty_wrong_fields_are_told(probed: httpx2.AsyncClient) -> None:
    answer = await probed.post("/probe/bodies", json={f"f{number}": 1 for number in range(2_000)})
    assert len(problem_of(answer, 422, "validation_failed")["errors"]) == 20


async def test_messages_follow_the_language(probed: httpx2.AsyncClient) -> None:
    chinese = await probed.post("/probe/bodies", json={})
    english = await probed.post("/probe/bodies", json={}, headers={"Accept-Language": "en-GB,zh;q=0.5"})
    assert chinese.json()["errors"][0]["message"] == "缺少此字段。"
    assert chinese.headers["Content-Language"] == "zh-CN"
    assert english.json()["errors"][0]["message"] == "This field is required."
    assert english.headers["Content-Language"] == "en"


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json; charset=gbk",
        "",
        "x",
    ],
)
async def test_a_body_of_another_type_is_refused(probed: httpx2.AsyncClient, content_type: str) -> None:
    answer = await probed.post(
        "/probe/bodies", content=json.dumps(SOUND).encode(), headers={"Content-Type": content_type}
    )
    problem_of(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json", "APPLICATION/JSON; charset=UTF-8"])
async def test_json_may_say_its_charset(probed: httpx2.AsyncClient, content_type: str) -> None:
    answer = await probed.post(
        "/probe/bodies", content=json.dumps(SOUND).encode(), headers={"Content-Type": content_type}
    )
    assert answer.status_code == 200


async def test_a_body_past_the_limit_is_refused_before_it_is_read(probed: httpx2.AsyncClient) -> None:
    answer = await probed.post("/probe/bodies", content=b" " * 65_537, headers=JSON)
    problem_of(answer, 413, "body_too_large")


async def test_a_chunked_body_past_the_limit_is_refused(probed: httpx2.AsyncClient) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        for _ in range(70):
            yield b" " * 1_024

    answer = await probed.post("/probe/bodies", content=chunks(), headers=JSON)
    problem_of(answer, 413, "body_too_large")


async def test_a_body_of_exactly_the_limit_is_read(probed: httpx2.AsyncClient) -> None:
    body = json.dumps(SOUND).encode()
    answer = await probed.post("/probe/bodies", content=body + b" " * (65_536 - len(body)), headers=JSON)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("query", "code"), [("limit=abc", "bad_format"), ("limit=0", "too_small"), ("limit=101", "too_large")]
)
async def test_a_wrong_query_is_named(probed: httpx2.AsyncClient, query: str, code: str) -> None:
    document = problem_of(await probed.get(f"/probe/numbers?{query}"), 422, "validation_failed")
    assert [(error["field"], error["code"]) for error in document["errors"]] == [("limit", code)]


async def test_a_phone_that_hangs_up_in_the_middle_of_a_body_is_neither_answered_nor_a_failure_of_ours(
    app: ASGIApp,
) -> None:
    pieces: list[Message] = [
        {"type": "http.request", "body": b'{"code"', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return pieces.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/auth/wechat",
        "raw_path": b"/v1/auth/wechat",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"50")],
        "client": ("127.0.0.1", 1),
        "server": ("clocktower.test", 80),
    }
    with structlog.testing.capture_logs() as written:
        await app(scope, receive, send)
    assert sent == []
    assert [(line["event"], line["status"]) for line in written] == [("request", 499)]
