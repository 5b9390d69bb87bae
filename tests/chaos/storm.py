"""What falls upon a server besides its crowd: `python -m tests.chaos.storm KIND ADDRESS SECONDS REQUESTS`.

A process of its own, so that the crowd of a round does not pay for it. It does as much as it can for so many seconds,
ignores every `Retry-After`, and prints what it heard, as one line of JSON.
"""

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec
import uvloop

from loadtest.bench.open_loop import replayed
from loadtest.http1 import Network, NoAnswerError, NoConnectionError, Phone, raise_file_limit

FLOOD_PHONES: Final = 2_000
RETRYING_PHONES: Final = 500
RECONNECTING_PHONES: Final = 200
SILENT_PHONES: Final = 4_000
SLOW_PHONES: Final = 500
_CONNECT_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 10.0
# Requests that a phone which reads nothing sends at a time, and in all: more than a server reads in one go.
_UNREAD_AT_ONCE: Final = 50
_UNREAD_MAX: Final = 10_000
_BYTE_EVERY_SECONDS: Final = 0.1
_BUSY: Final = frozenset({429, 503})


class Heard(msgspec.Struct):
    """What a storm heard: answers by status, and those of 429 and 503 that did not say when to come again."""

    sent: int = 0
    connections: int = 0
    refused_connections: int = 0
    answers: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    without_retry_after: int = 0


class Storm:
    """One storm: where to, until when, with what."""

    def __init__(self, address: str, seconds: float, requests: Sequence[bytes]) -> None:
        self.address = address
        self.host, self.port = urlsplit(address).hostname or "", urlsplit(address).port or 80
        self.until = time.monotonic() + seconds
        self.requests = requests
        self.heard = Heard()
        self._answers: Counter[int] = Counter()

    @property
    def goes_on(self) -> bool:
        """Tell whether it is not over yet."""
        return time.monotonic() < self.until

    async def asks(self, phones: int, requests_of: Callable[[int], Sequence[bytes]]) -> None:
        """Let so many phones ask again the moment they are answered, each its own requests, one after the other."""
        async with Network(self.address) as network, asyncio.TaskGroup() as group:
            for number in range(phones):
                group.create_task(self._ask_on(network, requests_of(number)))

    async def _ask_on(self, network: Network, requests: Sequence[bytes]) -> None:
        phone = Phone(network, limit_seconds=_PATIENCE_SECONDS)
        for request in cycle(requests):
            if not self.goes_on:
                phone.hang_up()
                return
            self.heard.sent += 1
            try:
                answer = await phone.send(request)
            except NoAnswerError:
                self._answers[0] += 1
            except NoConnectionError:
                self.heard.refused_connections += 1
                await asyncio.sleep(0.05)
            else:
                self._answers[answer.status] += 1
                self.heard.without_retry_after += answer.status in _BUSY and b"retry-after" not in answer.headers

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Open one connection, or count that there was none."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                line = await asyncio.open_connection(self.host, self.port)
        except (OSError, TimeoutError):
            self.heard.refused_connections += 1
            return None
        self.heard.connections += 1
        return line

    async def on_lines(self, count: int, live: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
        """Open so many connections, and do something with each until the storm is over."""

        async def one() -> None:
            line = await self.connect()
            if line is None:
                return
            _, writer = line
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(max(self.until - time.monotonic(), 0.0)):
                    await live(writer)
            writer.transport.abort()

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())

    def result(self) -> Heard:
        """Return what was heard."""
        self.heard.answers = dict(self._answers)
        return self.heard


async def flood(storm: Storm) -> None:
    """Ask for more than anybody can answer: two thousand strangers, each with the next claim at once."""
    share = max(len(storm.requests) // FLOOD_PHONES, 1)
    await storm.asks(FLOOD_PHONES, lambda n: storm.requests[n * share : (n + 1) * share] or storm.requests)


async def retries(storm: Storm) -> None:
    """Send one and the same claim again and again, whatever the answer."""
    await storm.asks(RETRYING_PHONES, lambda n: [storm.requests[n % len(storm.requests)]])


async def reconnects(storm: Storm) -> None:
    """Call, ask, hang up before the answer, and call again."""
    requests = cycle(storm.requests)

    async def one() -> None:
        while storm.goes_on:
            line = await storm.connect()
            if line is not None:
                _, writer = line
                writer.write(next(requests))
                storm.heard.sent += 1
                await asyncio.sleep(0)
                writer.transport.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(RECONNECTING_PHONES):
            group.create_task(one())


async def silence(storm: Storm) -> None:
    """Hold as many connections open as there are phones, and say nothing."""

    async def wait(_writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(storm.until - time.monotonic())

    await storm.on_lines(SILENT_PHONES, wait)


async def slow_senders(storm: Storm) -> None:
    """Send claims a byte at a time."""
    requests = cycle(storm.requests)

    async def dribble(writer: asyncio.StreamWriter) -> None:
        for byte in next(requests):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(_BYTE_EVERY_SECONDS)

    await storm.on_lines(SLOW_PHONES, dribble)


async def slow_readers(storm: Storm) -> None:
    """Ask and ask, and read no answer."""
    requests = storm.requests[0] * _UNREAD_AT_ONCE

    async def pour(writer: asyncio.StreamWriter) -> None:
        # What comes fills the buffers of the sockets, and then the server's.
        cast("asyncio.ReadTransport", writer.transport).pause_reading()
        for _ in range(0, _UNREAD_MAX, _UNREAD_AT_ONCE):
            writer.write(requests)
            storm.heard.sent += _UNREAD_AT_ONCE
            await writer.drain()
        await asyncio.sleep(storm.until - time.monotonic())

    await storm.on_lines(SLOW_PHONES, pour)


KINDS: Final[Mapping[str, Callable[[Storm], Awaitable[None]]]] = {
    kind.__name__: kind for kind in (flood, retries, reconnects, silence, slow_senders, slow_readers)
}


def main() -> None:
    """Be the storm that the command line names."""
    kind, address, seconds, requests = sys.argv[1:]
    raise_file_limit(SILENT_PHONES)
    storm = Storm(address, float(seconds), replayed(Path(requests)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(storm, kind))
    sys.stdout.write(msgspec.json.encode(storm.result()).decode() + "\n")


async def _run(storm: Storm, kind: str) -> None:
    await KINDS[kind](storm)


if __name__ == "__main__":
    main()
