"""A relay between a worker and an engine, which can swallow the engine's answers or cut the line."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

_CHUNK_BYTES = 65_536


class Relay:
    """Carries bytes between a worker and the unix socket of an engine. `relaying` runs one."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # While set, what the engine answers is lost on the way.
        self.swallows = False
        self.swallowed = asyncio.Event()
        # What the engine answers arrives in pieces of so many bytes.
        self.piece_bytes = _CHUNK_BYTES
        self._workers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Break every connection, as a network does."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def say(self, words: bytes) -> None:
        """Tell every worker something that no engine said."""
        for writer in self._workers:
            writer.write(words)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of the worker."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there_reader, there_writer = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, there_writer}
        self._workers.add(writer)
        try:
            await asyncio.gather(
                self._pass_on(reader, there_writer), self._pass_on(there_reader, writer, is_answer=True)
            )
        finally:
            for one in (writer, there_writer):
                one.transport.abort()
                self._writers.discard(one)
                self._workers.discard(one)
            self._tasks.discard(task)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(self.piece_bytes if is_answer else _CHUNK_BYTES):
                if is_answer and self.swallows:
                    self.swallowed.set()
                    continue
                writer.write(chunk)
                await writer.drain()
                # Else the next piece would be with this one when it is read.
                await asyncio.sleep(0)
        # One end hung up, so the other hears of it too.
        writer.transport.abort()

    async def end(self) -> None:
        """Break what is left, and wait until nothing runs."""
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def relaying(listens_at: Path, target: Path) -> AsyncGenerator[Relay]:
    """Relay connections made to the socket `listens_at` to the socket `target`."""
    relay = Relay(target)
    server = await asyncio.start_unix_server(relay.carry, listens_at)
    try:
        yield relay
    finally:
        server.close()
        await relay.end()
