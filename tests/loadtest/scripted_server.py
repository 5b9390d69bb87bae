"""A socket server that answers what a test writes into it, byte for byte."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Conversation:
    """One connection as the server sees it. `requests` grows by one head and body for each request read."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[bytes] = field(default_factory=list[bytes])

    async def read_request(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        request = head + await self.reader.readexactly(length)
        self.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


@dataclass
class ScriptedServer:
    """What a test looks at: the address, and every conversation there was."""

    base_url: str
    conversations: list[Conversation]


@contextlib.asynccontextmanager
async def scripted_server(
    script: Callable[[Conversation], Awaitable[None]],
) -> AsyncGenerator[ScriptedServer]:
    """Serve one script a connection on a free port of the loopback."""
    conversations: list[Conversation] = []
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = Conversation(reader, writer)
        conversations.append(conversation)
        try:
            await script(conversation)
        except (asyncio.IncompleteReadError, ConnectionError):
            # The phone hung up; that is what some of the tests are about.
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=512)
    port = server.sockets[0].getsockname()[1]
    try:
        yield ScriptedServer(f"http://127.0.0.1:{port}", conversations)
    finally:
        server.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def plain(body: bytes, *, status: int = 200, headers: bytes = b"") -> bytes:
    """Build an answer with a length."""
    head = b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n%s\r\n" % (status, len(body), headers)
    return head + body
