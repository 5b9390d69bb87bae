"""Where a message ends: what two readers could understand differently is refused, and every reader here agrees.

There are three: uvicorn's way over ASGI, the same parser with the gate's requests taken from the socket, and the reader
of claims that came whole. What one takes for the end of a message another must not take for its middle, or somebody's
body becomes somebody else's request (request smuggling; RFC 9112, section 11.2).
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from typing import Final, Literal

import pytest

from tests.contract.line import connected

pytestmark = pytest.mark.anyio

# What becomes of a message and of the one behind it: both are answered; it is answered, and then the connection ends;
# it is refused, and nothing behind it is read.
Fate = Literal["goes on", "ends", "refused"]

BODY: Final = b'{"release":"x"}'
SIZE: Final = len(BODY)
CHUNKED: Final = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY)
# One for the gate, and one for the application; to both what is said is wrong, and the message is not.
TARGETS: Final = (b"PUT /v1/claims/0197a3c0-1c00-7000-8000-0000000000c1", b"POST /v1/auth/refresh")
TYPE: Final = b"content-type: application/json\r\n"
LENGTH: Final = b"content-length: %d\r\n" % SIZE
TE: Final = b"transfer-encoding: chunked\r\n"
NEXT: Final = b"GET /v1/time HTTP/1.1\r\nhost: a\r\nx-request-id: the-next-one\r\nconnection: close\r\n\r\n"
PATIENCE_SECONDS: Final = 20.0


def lines(target: bytes, fields: bytes, body: bytes = BODY, *, version: bytes = b"HTTP/1.1") -> bytes:
    """Return a message: its first line, a host, a type, and these fields."""
    return target + b" " + version + b"\r\nhost: a\r\n" + TYPE + fields + b"\r\n" + body


# How it is written, with `target` for the first line's beginning; and what becomes of it.
MESSAGES: Final[Mapping[str, tuple[bytes, bytes, Fate]]] = {
    # --- a length
    "a length": (LENGTH, BODY, "goes on"),
    "a length with zeros in front": (b"content-length: 00%d\r\n" % SIZE, BODY, "goes on"),
    "a length between blanks": (b"content-length: \t%d \r\n" % SIZE, BODY, "goes on"),
    "a length in capitals": (b"CONTENT-LENGTH: %d\r\n" % SIZE, BODY, "goes on"),
    "the same length twice": (LENGTH * 2, BODY, "refused"),
    "two lengths": (LENGTH + b"Content-Length: 0\r\n", BODY, "refused"),
    "a list of lengths": (b"content-length: %d, %d\r\n" % (SIZE, SIZE), BODY, "refused"),
    "a signed length": (b"content-length: +%d\r\n" % SIZE, BODY, "refused"),
    "a negative length": (b"content-length: -1\r\n", BODY, "refused"),
    "a hexadecimal length": (b"content-length: 0x%x\r\n" % SIZE, BODY, "refused"),
    "a length in two": (b"content-length: 1 5\r\n", BODY, "refused"),
    "a length that is a fraction": (b"content-length: %d.0\r\n" % SIZE, BODY, "refused"),
    "a length beyond all numbers": (b"content-length: " + b"9" * 30 + b"\r\n", BODY, "refused"),
    "no number for a length": (b"content-length: all\r\n", BODY, "refused"),
    "nothing for a length": (b"content-length: \r\n", BODY, "refused"),
    "a length behind a vertical tab": (b"content-length: \x0b%d\r\n" % SIZE, BODY, "refused"),
    "a blank before the colon of a length": (b"content-length : %d\r\n" % SIZE, BODY, "refused"),
    "a length on the next line": (b"content-length:\r\n %d\r\n" % SIZE, BODY, "refused"),
    "another name for a length": (b"content_length: 2\r\n" + LENGTH, BODY, "goes on"),
    # --- chunks
    "chunks": (TE, CHUNKED, "goes on"),
    "chunks in any letters": (b"Transfer-Encoding: cHuNkEd\r\n", CHUNKED, "goes on"),
    "a length and chunks": (LENGTH + TE, CHUNKED, "refused"),
    "chunks and a length": (TE + b"content-length: %d\r\n" % len(CHUNKED), CHUNKED, "refused"),
    "chunks that are not last": (b"transfer-encoding: chunked, gzip\r\n", CHUNKED, "refused"),
    "chunks twice": (b"transfer-encoding: chunked, chunked\r\n", CHUNKED, "refused"),
    "no chunks": (b"transfer-encoding: identity\r\n", CHUNKED, "refused"),
    "something like chunks": (b"transfer-encoding: xchunked\r\n", CHUNKED, "refused"),
    "chunks in quotes": (b'transfer-encoding: "chunked"\r\n', CHUNKED, "refused"),
    "chunks with a parameter": (b"transfer-encoding: chunked;q=1\r\n", CHUNKED, "refused"),
    "nothing for chunks": (b"transfer-encoding: \r\n", CHUNKED, "refused"),
    "chunks behind a vertical tab": (b"transfer-encoding: \x0bchunked\r\n", CHUNKED, "refused"),
    "a blank before the colon of chunks": (b"transfer-encoding : chunked\r\n", CHUNKED, "refused"),
    "chunks on the next line": (b"transfer-encoding:\r\n chunked\r\n", CHUNKED, "refused"),
    "a chunk with an extension": (TE, CHUNKED.replace(b"\r\n", b";a=b\r\n", 1), "goes on"),
    "a line feed in an extension": (TE, CHUNKED.replace(b"\r\n", b";a\n\r\n", 1), "refused"),
    "a signed size": (TE, b"+" + CHUNKED, "refused"),
    "a size with a prefix": (TE, b"0x" + CHUNKED, "refused"),
    "a negative size": (TE, b"-1\r\n" + BODY + b"\r\n0\r\n\r\n", "refused"),
    "a size beyond all numbers": (TE, b"f" * 17 + b"\r\n" + BODY + b"\r\n0\r\n\r\n", "refused"),
    "no size": (TE, b"\r\n" + BODY + b"\r\n0\r\n\r\n", "refused"),
    "too small a size": (TE, b"1\r\n" + BODY + b"\r\n0\r\n\r\n", "refused"),
    "too large a size": (TE, b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE + 1, BODY), "refused"),
    "a blank behind a size": (TE, CHUNKED.replace(b"\r\n", b" \r\n", 1), "refused"),
    "chunks without carriage returns": (TE, CHUNKED.replace(b"\r\n", b"\n"), "refused"),
    "no line's end behind a chunk": (TE, b"%x\r\n%b0\r\n\r\n" % (SIZE, BODY), "refused"),
    "a field behind the chunks": (TE, CHUNKED[:-2] + b"x: y\r\n\r\n", "goes on"),
    "the end of the connection behind the chunks": (TE, CHUNKED[:-2] + b"Connection: close\r\n\r\n", "refused"),
    "the same, to a proxy": (TE, CHUNKED[:-2] + b"proxy-connection: close\r\n\r\n", "refused"),
    "another protocol behind the chunks": (TE, CHUNKED[:-2] + b"upgrade: h2c\r\n\r\n", "refused"),
    "chunks behind the chunks": (TE, CHUNKED[:-2] + TE + b"\r\n", "refused"),
    "a length behind the chunks": (TE, CHUNKED[:-2] + b"content-length: 5\r\n\r\n", "refused"),
    # --- lines
    "a line feed alone": (b"x: y\n" + LENGTH, BODY, "refused"),
    "a carriage return alone": (b"x: y\r" + LENGTH, BODY, "refused"),
    "a NUL in a value": (b"x: y\x00z\r\n" + LENGTH, BODY, "refused"),
    "a NUL in a name": (b"x\x00: y\r\n" + LENGTH, BODY, "refused"),
    "a line without a colon": (b"xyz\r\n" + LENGTH, BODY, "refused"),
    "a line that begins with a blank": (b" x: y\r\n" + LENGTH, BODY, "refused"),
    # --- connections
    "the end of the connection": (b"connection: close\r\n" + LENGTH, BODY, "ends"),
    "the end, and then not": (b"connection: close\r\nconnection: keep-alive\r\n" + LENGTH, BODY, "ends"),
    "not the end, and then the end": (b"Connection: keep-alive\r\nconnection: close\r\n" + LENGTH, BODY, "ends"),
    "a length for this connection only": (b"connection: content-length\r\n" + LENGTH, BODY, "goes on"),
    "another protocol": (b"connection: upgrade\r\nupgrade: h2c\r\n", b"", "goes on"),
    "another protocol, and no body": (b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 0\r\n", b"", "goes on"),
    # The parser would go on behind the head, and take the body for a request.
    "another protocol, with a body": (b"connection: upgrade\r\nupgrade: h2c\r\n" + LENGTH, BODY, "refused"),
    "another protocol, in chunks": (b"connection: upgrade\r\nupgrade: websocket\r\n" + TE, CHUNKED, "refused"),
    # Nobody here reads it, so it does not matter which of two is meant.
    "two hosts": (b"Host: b\r\nhost: c\r\n" + LENGTH, BODY, "goes on"),
}  # fmt: skip


def first_lines(target: bytes) -> Mapping[str, tuple[bytes, Fate]]:
    """Return messages that differ in their first line."""
    sound = lines(target, LENGTH)
    method = target.partition(b" ")[0]
    return {
        "HTTP/1.0": (lines(target, b"connection: keep-alive\r\n" + LENGTH, version=b"HTTP/1.0"), "ends"),
        "chunks in HTTP/1.0": (lines(target, TE, CHUNKED, version=b"HTTP/1.0"), "ends"),
        "HTTP/1.2": (lines(target, LENGTH, version=b"HTTP/1.2"), "refused"),
        "HTTP/11": (lines(target, LENGTH, version=b"HTTP/11"), "refused"),
        "a blank behind the version": (lines(target, LENGTH, version=b"HTTP/1.1 "), "refused"),
        "no carriage returns": (lines(target, LENGTH, b"").replace(b"\r\n", b"\n") + BODY, "refused"),
        "a tab behind the method": (sound.replace(b" ", b"\t", 1), "refused"),
        "a blank in the address": (sound.replace(b" HTTP", b" x HTTP", 1), "refused"),
        "a NUL in the address": (sound.replace(b" HTTP", b"\x00 HTTP", 1), "refused"),
        "an unencoded letter in the address": (sound.replace(b" HTTP", b"\xc3\xa9 HTTP", 1), "refused"),
        "a method in small letters": (sound.replace(method, method.lower(), 1), "refused"),
        "a method that is none": (sound.replace(method, b"PUTS", 1), "refused"),
        "empty lines in front": (b"\r\n\r\n" + sound, "goes on"),
        "the beginning of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "refused"),
        "a tunnel": (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n", "refused"),
    }


def all_messages(target: bytes) -> dict[str, tuple[bytes, Fate]]:
    """Return every message to this target, with its fate."""
    by_fields: dict[str, tuple[bytes, Fate]] = {
        name: (lines(target, fields, body), fate) for name, (fields, body, fate) in MESSAGES.items()
    }
    return {**by_fields, **first_lines(target)}


async def fate_of(address: str, sent: bytes, *, pieces: Literal["together", "apart", "cut"]) -> str:
    """Send a message and another behind it, and tell what became of both.

    Together: in one piece. Apart: the other once the first was answered. Cut: the end of the other in a second piece.
    """
    async with asyncio.timeout(PATIENCE_SECONDS), connected(address) as line:
        heard = b""
        if pieces == "apart":
            line.send(sent)
            heard = await line.hear_something()
            line.send(NEXT)
        elif pieces == "together":
            line.send(sent + NEXT)
        else:
            line.send(sent + NEXT[:30])
            await asyncio.sleep(0.02)
            line.send(NEXT[30:])
        heard += await line.hear_the_end()
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", heard)]
    assert 500 not in statuses
    match statuses:
        case [_, 200] if b"the-next-one" in heard:
            return "goes on"
        case [400]:
            return "refused"
        case [_]:
            return "ends"
        case _:
            return repr(heard)


@pytest.mark.parametrize("pieces", ["together", "apart", "cut"])
@pytest.mark.parametrize("target", TARGETS, ids=["gate", "api"])
async def test_every_reader_finds_the_same_end_of_a_message_or_refuses_it(
    address: str, target: bytes, pieces: Literal["together", "apart", "cut"], caplog: pytest.LogCaptureFixture
) -> None:
    messages = all_messages(target)
    fates = await asyncio.gather(*(fate_of(address, sent, pieces=pieces) for sent, _ in messages.values()))
    found = dict(zip(messages, fates, strict=True))
    assert found == {name: fate for name, (_, fate) in messages.items()}
    # Whoever works on what is refused in the middle has nobody to answer, and that is no defect of ours.
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("is_cut", [False, True])
async def test_what_was_sent_as_a_body_is_never_answered_as_a_request(address: str, *, is_cut: bool) -> None:
    inner = b"GET /v1/time HTTP/1.1\r\nhost: a\r\nx-request-id: from-a-body\r\n\r\n"
    length = b"content-length: %d\r\n" % len(inner)
    for target in TARGETS:
        for head, body in (
            (lines(target, length, b""), inner),
            (lines(target, TE, b"%x\r\n" % len(inner)), inner + b"\r\n0\r\n\r\n"),
            (lines(target, length + TE, b"0\r\n\r\n"), inner),
            (lines(target, b"content-length: 0\r\n" + length, b""), inner),
            (lines(target, b"connection: upgrade\r\nupgrade: h2c\r\n" + length, b""), inner),
            (b"GET /v1/time HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n" + length + b"\r\n", inner),
            (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n" + length + b"\r\n", inner),
        ):
            async with asyncio.timeout(PATIENCE_SECONDS), connected(address) as line:
                line.send(head)
                if is_cut:
                    await asyncio.sleep(0.02)
                line.send(body + NEXT)
                assert b"from-a-body" not in await line.hear_the_end(), head


async def test_a_body_that_breaks_off_is_no_defect_of_ours(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither where it is waited for, nor where the answer is ready before it would have come."""
    for target in (*TARGETS, b"GET /v1/time", b"DELETE /v1/me"):
        for cut in (0, 2):
            async with asyncio.timeout(PATIENCE_SECONDS), connected(address) as line:
                broken = b"5\r\n{12345 no end of a chunk"
                line.send(lines(target, TE, broken[:cut]) if cut else lines(target, TE, broken))
                if cut:
                    await asyncio.sleep(0.05)
                    line.send(broken[cut:])
                heard = await line.hear_the_end()
                assert heard.count(b"HTTP/1.1 ") == 1 or b"HTTP/1.1 400" in heard
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
