"""The reader of whole requests takes the plain ones and leaves nothing of the others behind."""

from collections.abc import Sequence

import pytest

from app.booking.gate.whole import WholeReader

PATH = b"/v1/claims/0190aaaa-0000-7000-8000-000000000000"
BODY = b'{"release":"r"}'


def request(
    *more: bytes,
    line: bytes = b"PUT " + PATH + b" HTTP/1.1",
    body: bytes = BODY,
    length: int | None = None,
) -> bytes:
    headers: Sequence[bytes] = (
        line,
        b"Host: clocktower.test",
        b"Authorization: Pass abc",
        b"content-TYPE: application/json",
        b"Content-Length: %d" % (len(body) if length is None else length),
        *more,
    )
    return b"\r\n".join(headers) + b"\r\n\r\n" + body


PLAIN = (PATH, BODY, (None, b"Pass abc", b"application/json", None, None, None))
POLL_PATH = b"/v1/releases/0190aaaa-0000-7000-8000-000000000000/availability"
POLL = b"GET " + POLL_PATH + b' HTTP/1.1\r\nHost: clocktower.test\r\nIf-None-Match: "1-2-1"\r\n\r\n'


def test_a_plain_request_is_read_with_the_headers_that_the_gate_reads() -> None:
    reader = WholeReader()
    assert reader.read(request()) == PLAIN
    asked = request(b"ACCEPT-language: en", b"X-Request-Id: phone-0001", b"Cookie: a=b", b"Connection: Keep-Alive")
    assert reader.read(asked) == (
        PATH,
        BODY,
        (b"Keep-Alive", b"Pass abc", b"application/json", b"en", None, b"phone-0001"),
    )
    # Of a header that comes twice the first counts, as everywhere.
    assert reader.read(request(b"Authorization: Pass def")) == PLAIN
    assert reader.read(request()) == PLAIN


def test_a_poll_has_no_body_and_claims_and_polls_take_turns() -> None:
    reader = WholeReader()
    polled = POLL_PATH, b"", (None, None, None, None, b'"1-2-1"', None)
    for _ in range(2):
        assert reader.read(POLL) == polled
        assert reader.read(request()) == PLAIN
    assert reader.read(request(body=b"", length=0)) == (PATH, b"", PLAIN[2])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(request()[:-1], id="a byte is missing"),
        pytest.param(request()[:40], id="the head is cut"),
        pytest.param(request() + b"P", id="a letter of the next request"),
        pytest.param(request() + b"PUT ", id="the method of the next request"),
        pytest.param(request() + b"\r\n", id="an empty line behind"),
        pytest.param(request() + request(), id="two requests"),
        # The end of the head may also stand in the body, where more than the body follows.
        pytest.param(request(body=b"\r\n\r\n" + BODY) + b"PUT ", id="an end of a head in the body"),
        pytest.param(POLL + b"G", id="a letter behind a poll"),
        pytest.param(POLL + POLL, id="two polls"),
        pytest.param(POLL[:-1], id="a poll of which a byte is missing"),
        pytest.param(POLL[:-2] + b"Content-Length: 5\r\n\r\n", id="a poll whose body is to come"),
        pytest.param(request(line=b"PUT " + PATH + b" HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(request(b"Connection: close"), id="the last of its connection"),
        pytest.param(request(b"Connection: keep-alive", b"Connection: close"), id="the last, said second"),
        pytest.param(request(b"Proxy-Connection: close"), id="the last, in words of old"),
        pytest.param(request(b"Connection: Upgrade", b"Upgrade: websocket"), id="an upgrade"),
        pytest.param(request(b"Upgrade: h2c"), id="an offer to upgrade"),
        pytest.param(request(b"Expect: 100-continue"), id="an expectation"),
        pytest.param(request(b"Transfer-Encoding: chunked"), id="two lengths"),
        pytest.param(
            request(body=b"f\r\n" + BODY + b"\r\n0\r\n\r\n").replace(
                b"Content-Length: 25", b"Transfer-Encoding: chunked"
            ),
            id="in chunks",
        ),
        pytest.param(request(b"AUTHORIZATION: Pass def"), id="a header twice, in other letters"),
        pytest.param(request(line=b"PUT " + PATH + b"?a=b HTTP/1.1"), id="a query"),
        pytest.param(request(line=b"PUT /v1/claims/%30 HTTP/1.1"), id="an escape"),
        pytest.param(request(b"X: " + b"x" * 9_000), id="too long"),
        pytest.param(request(line=b"PUT\0" + PATH + b" HTTP/1.1"), id="no HTTP"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_not_plain_is_left_to_others_and_nothing_of_it_stays(data: bytes) -> None:
    reader = WholeReader()
    assert reader.read(data) is None
    assert reader.read(request()) == PLAIN
    assert reader.read(data) is None
    assert reader.read(request(b"X-Request-Id: phone-0001")) == (PATH, BODY, (*PLAIN[2][:5], b"phone-0001"))
