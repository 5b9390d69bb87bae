"""What is no HTTP at all, or has no end, is told as a problem, over a real socket."""

import asyncio
import json
import socket

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.core.web.protocol import HEAD_LIMIT_BYTES, ProblemProtocol

pytestmark = pytest.mark.anyio


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer anything that is HTTP."""
    await PlainTextResponse("hello")(scope, receive, send)


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
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(hello, http=ProblemProtocol, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(sent)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
    finally:
        server.should_exit = True
        await serving
        listener.close()

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    if status != 200:
        assert b"content-type: application/problem+json" in head
        assert json.loads(body)["code"] == ("head_too_large" if status == 431 else "malformed_http")
