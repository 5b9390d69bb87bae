"""A phone's connection, byte by byte: what is sent is chosen freely, and what is heard is read strictly."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from app.booking.gate.desk import Request
from tests.booking.gate.builders import Phone

# Far longer than any answer takes; a test that reaches it has failed.
PATIENCE_SECONDS: Final = 60.0
_LITTLE_BYTES: Final = 4_096
_NO_BODY: Final = frozenset({100, 204, 304})


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> dict[str, Any]:
        """Return the document."""
        document: dict[str, Any] = json.loads(self.body)
        return document

    @property
    def word(self) -> str:
        """Return the answer's code or state."""
        word: str = self.said.get("code") or self.said["state"]
        return word


class Line:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *messages: bytes) -> None:
        """Send bytes in one piece, without waiting for anything."""
        self._writer.write(b"".join(messages))

    async def send_in_pieces(self, message: bytes, piece_bytes: int) -> None:
        """Send bytes in pieces, each of which leaves before the next is written."""
        for at in range(0, len(message), piece_bytes):
            self._writer.write(message[at : at + piece_bytes])
            await self._writer.drain()
            await asyncio.sleep(0.001)

    async def hear(self, *, to_head: bool = False) -> Heard:
        """Read one answer; one to `HEAD` has no body, whatever it announces."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status_line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
            version, status, _ = status_line.split(" ", 2)
            assert version == "HTTP/1.1"
            pairs = [line.split(": ", 1) for line in lines]
            headers = {name.lower(): value for name, value in pairs}
            assert len(headers) == len(pairs), "no header comes twice"
            if int(status) in _NO_BODY:
                assert "content-length" not in headers
                return Heard(int(status), headers, b"")
            length = 0 if to_head else int(headers["content-length"])
            return Heard(int(status), headers, await self._reader.readexactly(length))

    async def ask(self, message: bytes, *, to_head: bool = False) -> Heard:
        """Send a request and read its answer."""
        self.send(message)
        return await self.hear(to_head=to_head)

    async def hear_something(self) -> bytes:
        """Return the first bytes that come; nothing once the server has hung up."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._reader.read(_LITTLE_BYTES)

    async def hear_the_end(self) -> bytes:
        """Return what still comes until the server hangs up, or breaks the connection since it reads no more of it."""
        heard = b""
        async with asyncio.timeout(PATIENCE_SECONDS):
            with suppress(ConnectionResetError):
                while piece := await self._reader.read(_LITTLE_BYTES):
                    heard += piece
        return heard

    async def says_nothing_for(self, seconds: float) -> bool:
        """Tell whether neither an answer nor the end comes for so long. Whatever comes is lost."""
        try:
            async with asyncio.timeout(seconds):
                await self._reader.read(1)
        except TimeoutError:
            return True
        return False

    def hang_up(self) -> None:
        """Break the connection, as a phone does that loses its network."""
        self._writer.transport.abort()


@asynccontextmanager
async def connected(address: str, *, reads_little: bool = False) -> AsyncGenerator[Line]:
    """Connect to a server by its base address, with room for few answers that nobody has read yet if told so."""
    parts = urlsplit(address)
    connection = socket.socket()
    if reads_little:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LITTLE_BYTES)
    connection.settimeout(0)
    await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=_LITTLE_BYTES if reads_little else 2**16)
    try:
        yield Line(reader, writer)
    finally:
        writer.transport.abort()


def message(
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    version: str = "1.1",
) -> bytes:
    """Return a request as it is written. A body is announced, unless the headers announce it in another way."""
    lines = {"host": "clocktower.test"} | dict(headers or {})
    if body is not None and not {"content-length", "transfer-encoding"} & lines.keys():
        lines["content-length"] = str(len(body))
    head = f"{method} {path} HTTP/{version}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode() + b"\r\n" + (body or b"")


def claim_message(phone: Phone, request: Request | None = None, **headers: str) -> bytes:
    """Return a claim of this phone as it is written. Header names are given with `_` for `-`."""
    request = request or phone.claim()
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return message("PUT", request.path, request.body, phone.headers | more)


def chunked(body: bytes, chunk_bytes: int) -> bytes:
    """Return a body in chunks (RFC 9112, section 7.1)."""
    pieces = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
