"""What many are told in the same words is framed once, and each still gets an answer of their own."""

from app.booking.gate.refusals import SOLD_OUT
from app.core.problems import KEPT_HEADER_BYTES_MAX
from app.core.web import documents
from app.core.web.documents import Answer, problem_answer
from app.core.web.protocol import written

ONE_SECOND = b"date: Thu, 26 Nov 2026 02:00:00 GMT\r\n"
THE_NEXT = b"date: Thu, 26 Nov 2026 02:00:01 GMT\r\n"


def sold_out(accept_language: bytes | None) -> Answer:
    return problem_answer(SOLD_OUT, accept_language=accept_language, request_id="unused-here")


def test_a_shared_answer_is_right_for_every_id_and_every_second() -> None:
    answer = sold_out(None)
    for more_headers in (ONE_SECOND, THE_NEXT, ONE_SECOND):
        for request_id in ("12345678", "a-longer-one-0001", "87654321"):
            head, _, body = written(answer, request_id, more_headers=more_headers).partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            assert body == answer.body_for(request_id.encode())
            assert b"content-length: %d" % len(body) in lines
            assert b"x-request-id: " + request_id.encode() in lines
            assert more_headers.strip() in lines


def test_to_head_a_shared_answer_has_no_body() -> None:
    answer = sold_out(None)
    head, _, body = written(answer, "12345678", is_head=True).partition(b"\r\n\r\n")
    assert body == b""
    assert b"content-length: %d" % len(answer.body_for(b"12345678")) in head.split(b"\r\n")


def test_a_language_is_kept_only_by_a_header_as_phones_send_it() -> None:
    documents._kept_answer.cache_clear()
    long = b"en" + b", x-more" * KEPT_HEADER_BYTES_MAX
    assert sold_out(long) is sold_out(b"en")
    assert sold_out(b"en") is not sold_out(b"zh-CN")
    assert documents._kept_answer.cache_info().currsize == 2
