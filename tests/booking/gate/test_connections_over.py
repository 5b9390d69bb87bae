"""A connection that is over leaves nothing behind for the garbage collector, whatever it was in the midst of."""

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.booking.gate.desk import Desk, Reply, Request
from app.booking.gate.protocol import DESK_STATE, GateProtocol
from app.core.web.documents import Answer

pytestmark = pytest.mark.anyio

CLAIM: Final = b"PUT /v1/claims/x HTTP/1.1\r\nHost: gate.test\r\nContent-Length: 2\r\n\r\n"
ANSWER: Final = Answer(409, (), b"{}")


class ScriptedDesk:
    """Takes every request of the gate; answers it at once, or keeps it."""

    body_limit_bytes = 1_000

    def __init__(self, *, answers: bool) -> None:
        self.kept: list[Reply] = []
        self._answers = answers

    def is_mine(self, method: str, path: str, authorization: bytes) -> bool:
        del method, path, authorization
        return True

    def take(self, request: Request, reply: Reply) -> None:
        del request
        if self._answers:
            reply(ANSWER)
        else:
            self.kept.append(reply)


async def application(_scope: Any, _receive: Any, send: Any) -> None:
    """Answers what is sent ahead of an answer: such a request goes the way of ASGI."""
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def serving(desk: ScriptedDesk) -> AsyncGenerator[tuple[int, "weakref.WeakSet[GateProtocol]"]]:
    config = uvicorn.Config(application, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    protocols: weakref.WeakSet[GateProtocol] = weakref.WeakSet()

    def made() -> asyncio.Protocol:
        protocol = GateProtocol(config, state, {DESK_STATE: cast("Desk", desk)})
        protocols.add(protocol)
        return protocol

    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], protocols
    finally:
        server.close()


async def over(protocols: "weakref.WeakSet[GateProtocol]") -> bool:
    """Tell whether nothing is left of them within a moment."""
    for _ in range(100):
        if not protocols:
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        pytest.param(CLAIM + b"{}", True, id="answered"),
        pytest.param(CLAIM + b"{}", False, id="waiting"),
        pytest.param(CLAIM + b"{}" + CLAIM + b"{}", False, id="sent-ahead"),
        pytest.param(CLAIM + b"{", False, id="halfway"),
        pytest.param(CLAIM[:20], False, id="in-the-head"),
        pytest.param(b"", False, id="silent"),
    ],
)
async def test_a_connection_is_freed_without_the_collector(sent: bytes, *, answers: bool) -> None:
    desk = ScriptedDesk(answers=answers)
    gc.collect()
    gc.disable()
    try:
        async with serving(desk) as (port, protocols):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            await writer.drain()
            await asyncio.sleep(0.05)
            assert len(protocols) == 1
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.05)
            # Whoever still has an answer for it holds it, and has nobody to tell.
            while desk.kept:
                desk.kept.pop(0)(ANSWER)
            assert await over(protocols)
    finally:
        gc.enable()


async def test_a_whole_claim_that_is_longer_than_the_gate_reads_is_not_taken() -> None:
    desk = ScriptedDesk(answers=True)
    async with serving(desk) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for length, status in ((desk.body_limit_bytes, b"409"), (desk.body_limit_bytes + 1, b"404")):
            head = CLAIM.replace(b"Content-Length: 2", b"Content-Length: %d" % length)
            writer.write(head + b"x" * length)
            # The application behind the gate knows how to refuse it.
            assert (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1] == status
            if status == b"409":
                await reader.readexactly(len(ANSWER.body))
        writer.close()
        await writer.wait_closed()
