"""What is no HTTP at all, or has no end, is told as a problem, over a real socket."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.core.web.protocol import HEAD_LIMIT_BYTES, ProblemProtocol

pytestmark = pytest.mark.anyio


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer anything that is HTTP: at once, later, when all of it is there, or never to the end."""
    if scope["path"] == "/later":
        await asyncio.sleep(0.1)
    if scope["path"] == "/whole":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/half":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"he", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    await PlainTextResponse("hello")(scope, receive, send)


@asynccontextmanager
async def serving() -> AsyncGenerator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(hello, http=ProblemProtocol, lifespan="off", log_config=None))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        await task
        listener.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 200),
        (b"FOO / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n", 400),
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\na: " + b"a" * 8_000 + b"\r\n\r\n", 200),
        # One byte too many: nothing is left unread, so the answer arrives before the end of the connection.
        ((b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"a" * HEAD_LIMIT_BYTES)[: HEAD_LIMIT_BYTES + 1], 431),
        ((b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: a\r\n" * HEAD_LIMIT_BYTES)[: HEAD_LIMIT_BYTES + 1], 431),
    ],
    ids=["sound", "unknown method", "wrong length", "noise", "long head", "endless header", "endless headers"],
)
async def test_what_cannot_be_read_is_a_problem_and_what_can_is_served(sent: bytes, status: int) -> None:
    async with serving() as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(sent)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    if status != 200:
        assert b"content-type: application/problem+json" in head
        assert json.loads(body)["code"] == ("head_too_large" if status == 431 else "malformed_http")


_GET: Final = b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n"
_POST: Final = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
_BAD_CHUNK: Final = b"2\r\nab\r\nZ\r\n"


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        pytest.param([_POST % b"/whole" + _BAD_CHUNK], [400], id="alone"),
        pytest.param([_GET % b"/later" + _POST % b"/whole" + _BAD_CHUNK], [200, 400], id="behind another"),
        pytest.param(
            [_GET % b"/later" + _GET % b"/later" + _POST % b"/whole" + _BAD_CHUNK], [200, 200, 400], id="behind two"
        ),
        pytest.param([_GET % b"/later" + b"\x00\x01"], [200], id="no request behind one"),
        pytest.param([_POST % b"/" + b"2\r\nab\r\n", b"Z\r\n"], [200], id="answered before"),
        pytest.param([_POST % b"/half" + b"2\r\nab\r\n", b"Z\r\n"], [200], id="half answered before"),
    ],
)
async def test_what_breaks_off_is_told_in_its_turn_and_once(pieces: list[bytes], statuses: list[int]) -> None:
    async with serving() as address:
        reader, writer = await asyncio.open_connection(*address)
        for piece in pieces:
            writer.write(piece)
            # The application has its turn in between.
            await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            said = await reader.read()
        writer.close()
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", said)] == statuses
