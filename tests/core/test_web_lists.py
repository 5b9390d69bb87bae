import base64
import json

import pytest
from starlette.requests import Request

from app.core.etags import etag_of, has_newest, tagged_response
from app.core.pages import page_of, read_cursor, write_cursor
from app.core.problems import ValidationFailed


def test_a_cursor_gives_its_key_back() -> None:
    key = ("钟楼 第一村", "0197a3c2-5b1e-7c40-9a52-0d6f1f0b7f11")
    assert read_cursor(write_cursor(*key), parts=2) == key
    assert read_cursor(None, parts=2) is None


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "!!!!",
        "钟楼",
        write_cursor("one"),
        write_cursor("a", "b\x00"),
        base64.urlsafe_b64encode(b"[" * 300).decode(),
        base64.urlsafe_b64encode(json.dumps([1, 2]).encode()).decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
def test_a_cursor_that_no_list_gave_out_is_refused(cursor: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        read_cursor(cursor, parts=2)
    assert refused.value.errors[0].code == "bad_cursor"


def test_pages_follow_each_other_to_the_end() -> None:
    rows = [f"{number:03}" for number in range(25)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        key = read_cursor(cursor, parts=1)
        after = [row for row in rows if key is None or row > key[0]][:11]
        items, cursor = page_of(after, limit=10, cursor_of=write_cursor)
        seen += items
        if cursor is None:
            break
    assert seen == rows


@pytest.mark.parametrize(
    ("header", "newest"), [("{}", True), ('W/{}, "b"', True), ("*", True), ('"b"', False), ("", False)]
)
def test_who_has_the_newest_is_told_so(header: str, newest: bool) -> None:  # noqa: FBT001 - a case
    body = b'{"items":[]}'
    tag = etag_of(body)
    sent = header.format(tag)
    assert has_newest(sent, tag) is newest
    scope = {"type": "http", "headers": [(b"if-none-match", sent.encode())]}
    response = tagged_response(Request(scope), body)
    assert response.status_code == (304 if newest else 200)
    assert response.body == (b"" if newest else body)
    assert response.headers["ETag"] == tag
