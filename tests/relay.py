"""A relay between a worker and an engine, which can lose or delay what passes, in either direction, or cut the line."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

_CHUNK_BYTES = 65_536


class Direction:
    """What happens to the bytes that go one way."""

    def __init__(self) -> None:
        # While set, what is sent is lost on the way.
        self.swallows = False
        self.swallowed = asyncio.Event()
        self.delay_seconds = 0.0
        # What is sent arrives in pieces of so many bytes.
        self.piece_bytes = _CHUNK_BYTES

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what is read until one end hangs up; then the other end hears of it too."""
        with contextlib.suppress(OSError):
            while chunk := await reader.read(self.piece_bytes):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if self.swallows:
                    self.swallowed.set()
                    continue
                writer.write(chunk)
                await writer.drain()
                # Else the next piece would be with this one when it is read.
                await asyncio.sleep(0)
        writer.transport.abort()


class Relay:
    """Carries bytes between workers and the unix socket of an engine. `relaying` runs one.

    A `target` that is changed counts for the lines that are made from then on.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.questions = Direction()
        self.answers = Direction()
        self._tasks: set[asyncio.Task[None]] = set()
        # The two ends of each line, the worker's first.
        self._lines: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []

    def cut(self, *, every: int = 1) -> None:
        """Break every line, or every so-manieth, as a network does."""
        for line in self._lines[::every]:
            for end in line:
                end.transport.abort()

    def say(self, words: bytes) -> None:
        """Tell every worker something that no engine said."""
        for worker, _ in self._lines:
            worker.write(words)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one line of a worker."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there_reader, there_writer = await asyncio.open_unix_connection(self.target)
        except OSError:
            # Nobody is there: the worker hears of it by the end of its line.
            writer.transport.abort()
            self._tasks.discard(task)
            return
        line = (writer, there_writer)
        self._lines.append(line)
        try:
            await asyncio.gather(self.questions.carry(reader, there_writer), self.answers.carry(there_reader, writer))
        finally:
            for end in line:
                end.transport.abort()
            self._lines.remove(line)
            self._tasks.discard(task)

    async def end(self) -> None:
        """Break what is left, and wait until nothing runs."""
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def relaying(listens_at: Path, target: Path) -> AsyncGenerator[Relay]:
    """Relay lines made to the socket `listens_at` to the socket `target`."""
    relay = Relay(target)
    server = await asyncio.start_unix_server(relay.carry, listens_at)
    try:
        yield relay
    finally:
        server.close()
        await relay.end()
