"""Counts what PostgreSQL is asked over the wire: a relay that reads along, in a thread of its own.

Between the driver and the server nothing is hidden from it: what the driver does by itself, such as cleaning a
connection up before it goes back to the pool, is a round trip like any other.
"""

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

_CHUNK_BYTES: Final = 65_536
_START_SECONDS_MAX: Final = 10.0
# The name that libpq's way of addresses gives the socket of this port.
PORT: Final = 5432
SOCKET_NAME: Final = f".s.PGSQL.{PORT}"
_LENGTH_BYTES: Final = 4
# Messages of the server (PostgreSQL's documentation, 54.7): a statement is complete; ready, and in no transaction.
_COMPLETE: Final = ord("C")
_READY: Final = ord("Z")
_IDLE: Final = b"I"


class LineCounts(NamedTuple):
    """What went over the line.

    A round trip ends when the server is ready again, a transaction when it is ready and in none. Bytes are those that
    the client sent, and those that it received.
    """

    statements: int = 0
    round_trips: int = 0
    transactions: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    def since(self, before: "LineCounts") -> "LineCounts":
        """Return what came after `before`."""
        return LineCounts(*(now - then for now, then in zip(self, before, strict=True)))


class _Messages:
    """Cuts what the server says into messages: a letter, a length that counts itself, and so many bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def in_chunk(self, chunk: bytes) -> Generator[tuple[int, bytes]]:
        """Yield each message that is whole by now."""
        buffer = self._buffer
        buffer += chunk
        while len(buffer) > _LENGTH_BYTES:
            end = 1 + int.from_bytes(buffer[1 : 1 + _LENGTH_BYTES], "big")
            if len(buffer) < end:
                return
            yield buffer[0], bytes(buffer[1 + _LENGTH_BYTES : end])
            del buffer[:end]


class PostgresLine:
    """Carries connections from `directory`, where it listens as PostgreSQL would, to the server. Made by `relayed`.

    What the client has heard is counted before: whoever got an answer finds it in the counts.
    """

    def __init__(self, directory: Path, target: Path) -> None:
        self._listens_at = directory / SOCKET_NAME
        self._target = target
        self._counts = LineCounts()
        self._lines: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def counts(self) -> LineCounts:
        """Return everything since the start."""
        return self._counts

    async def run(self, started: Callable[[], object]) -> None:
        """Relay until `end`."""
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_unix_server(self._carry, self._listens_at)
        started()
        await self._ended.wait()
        server.close()
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    def end(self) -> None:
        """End `run`, from another thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ended.set)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line is not None
        self._lines.add(line)
        there_reader, there_writer = await asyncio.open_unix_connection(self._target)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(reader, there_writer, self._count_sent))
                both.create_task(self._pass_on(there_reader, writer, self._counting_received()))
        finally:
            for end in (writer, there_writer):
                end.transport.abort()
            self._lines.discard(line)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[bytes], None]
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                count(chunk)
                writer.write(chunk)
                await writer.drain()
        # One end hung up, so the other hears of it too.
        writer.transport.abort()

    def _count_sent(self, chunk: bytes) -> None:
        self._counts = self._counts._replace(sent_bytes=self._counts.sent_bytes + len(chunk))

    def _counting_received(self) -> Callable[[bytes], None]:
        messages = _Messages()

        def count(chunk: bytes) -> None:
            counts = self._counts
            for letter, rest in messages.in_chunk(chunk):
                if letter == _COMPLETE:
                    counts = counts._replace(statements=counts.statements + 1)
                elif letter == _READY:
                    counts = counts._replace(
                        round_trips=counts.round_trips + 1, transactions=counts.transactions + (rest == _IDLE)
                    )
            self._counts = counts._replace(received_bytes=counts.received_bytes + len(chunk))

        return count


@contextmanager
def relayed(directory: Path, target: Path) -> Generator[PostgresLine]:
    """Relay what connects to `directory` to the socket `target` of the server, and count."""
    line = PostgresLine(directory, target)
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(line.run(started.set)), name="postgres-line")
    thread.start()
    try:
        assert started.wait(_START_SECONDS_MAX), "the relay did not start"
        yield line
    finally:
        line.end()
        thread.join(_START_SECONDS_MAX)
