"""A light HTTP/1.1 client: one keep-alive connection stands for one phone.

The crowd shares two cores with the server it measures, so the client must cost little: a request is one write, an
answer one parser pass, and time-outs are found by one sweep over the requests in flight instead of a timer for each.
A phone can also hang up on purpose before the answer is read; that is how a lost reply is played.
"""

import asyncio
import resource
import ssl
import time
from typing import Final, Self, cast
from urllib.parse import urlsplit

import httptools
import msgspec

# A time-out is found at the next sweep, so it may come this much late; phones count in seconds.
SWEEP_SECONDS: Final = 0.1
# Standard input, the loop, logs, the connections that prepare the crowd: room beside one descriptor a phone.
SPARE_DESCRIPTORS: Final = 200


class NoAnswerError(Exception):
    """The request was sent and its outcome is not known. `reason` is one of cut, closed, timed_out, garbled."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NoConnectionError(Exception):
    """No connection could be made, so nothing was sent."""


class BadAddressError(ValueError):
    """What should be the server's address is none."""


class TooFewFilesError(Exception):
    """This process may not open as many connections as the crowd has phones."""


def raise_file_limit(phones: int) -> int:
    """Raise the soft limit of open files to the hard one; answer it.

    Raises `TooFewFilesError`, with a sentence an operator can act on, where the hard limit itself is too low.
    """
    needed = phones + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard not in (unlimited, -1) and hard < needed:
        raise TooFewFilesError(
            f"{phones} phones need {needed} open files, but this process may open only {hard}: "
            f"raise the hard limit (ulimit -Hn {needed}, or LimitNOFILE= in systemd) or send fewer parents."
        )
    return hard


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What came back. Header names are lower case; `elapsed_seconds` runs from the write to the last byte."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    elapsed_seconds: float


class Line(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, network: "Network") -> None:
        self._network = network
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._headers_complete = False
        self._sent_at = 0.0
        self.deadline = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a request can be written now."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_busy(self) -> bool:
        """Whether an answer is still awaited."""
        return self._waiter is not None

    async def send(self, message: bytes, *, limit_seconds: float) -> Answer:
        """Write a composed request and read its answer.

        Raises `NoConnectionError` before the write, `NoAnswerError` after it.
        """
        if self._waiter is not None:
            raise RuntimeError("one phone line carries one request at a time")
        if self._transport is None or self._transport.is_closing():
            raise NoConnectionError("the line has gone")
        waiter = self._waiter = self._network.loop.create_future()
        self._sent_at = time.perf_counter()
        self.deadline = self._sent_at + limit_seconds
        self._network.in_flight.add(self)
        self._transport.write(message)
        try:
            return await waiter
        finally:
            if self._waiter is waiter:
                # The caller was cancelled: an answer that still comes belongs to nobody, so the line is no use.
                self.hang_up("cut")

    def hang_up(self, reason: str) -> None:
        """Close the line after what was written has left; a request in flight fails with `reason`."""
        self._fail(reason)
        if self._transport is not None:
            # close(), not abort(): abort would drop the request with the reply.
            self._transport.close()

    def _fail(self, reason: str) -> None:
        waiter, self._waiter = self._waiter, None
        self._network.in_flight.discard(self)
        if waiter is not None and not waiter.done():
            waiter.set_exception(NoAnswerError(reason))

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # A cast, not a check: uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._network.open_lines.add(self)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what is not HTTP ends the line."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.hang_up("garbled")
        except httptools.HttpParserUpgrade:
            self.hang_up("garbled")

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle the request in flight: complete where the end of the line ends the body, unknown otherwise."""
        del exc  # Whatever the reason, the outcome is as little known.
        self._network.open_lines.discard(self)
        length_known = b"content-length" in self._headers or b"transfer-encoding" in self._headers
        if self._waiter is not None and self._headers_complete and not length_known:
            # RFC 9112, section 6.3: such a body ends where the connection does.
            self.on_message_complete()
        self._fail("closed")
        self._transport = None

    # The parser's side.

    def on_message_begin(self) -> None:
        """Start afresh: the parser serves all answers of a line."""
        self._headers = {}
        self._parts = []
        self._headers_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header; of a repeated one the last."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Remember that only a body is missing."""
        self._headers_complete = True

    def on_body(self, body: bytes) -> None:
        """Keep one piece of the body, chunk framing already taken off."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Hand the answer to whoever waits."""
        status = self._parser.get_status_code()
        if status < 200:  # noqa: PLR2004 - RFC 9110, section 15.2: 1xx comes before the answer
            return
        waiter, self._waiter = self._waiter, None
        self._network.in_flight.discard(self)
        if waiter is not None and not waiter.done():
            elapsed = time.perf_counter() - self._sent_at
            waiter.set_result(Answer(status, self._headers, b"".join(self._parts), elapsed))
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()


class Network:
    """One address, the lines to it, and the sweep that ends requests past their deadline.

    An async context manager: leaving it closes every line and waits until they are closed.
    """

    def __init__(self, base_url: str) -> None:
        """Take `http://host:port[/prefix]` or https; raises `BadAddressError` for anything else."""
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BadAddressError(f"{base_url!r} is not an http or https address")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._host_header = parts.netloc.rpartition("@")[2]
        self.loop = asyncio.get_running_loop()
        self.in_flight: set[Line] = set()
        self.open_lines: set[Line] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._sweep()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for line in tuple(self.open_lines):
            line.hang_up("cut")
        # Closing takes a turn of the loop for each line; bounded, since a peer may never read what is left.
        turns_left = 100
        while self.open_lines and turns_left > 0:
            turns_left -= 1
            await asyncio.sleep(0.01)

    def compose(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> bytes:
        """Build the bytes of one request, so that a phone can have them ready before the second comes."""
        lines = [f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {self._host_header}\r\n"]
        if headers:
            lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")
            return "".join(lines).encode("latin-1") + body
        lines.append("\r\n")
        return "".join(lines).encode("latin-1")

    async def connect(self, *, limit_seconds: float) -> Line:
        """Open one line. Raises `NoConnectionError`."""
        server_name = self._host if self._tls else None
        try:
            async with asyncio.timeout(limit_seconds):
                _, line = await self.loop.create_connection(
                    lambda: Line(self), self._host, self._port, ssl=self._tls, server_hostname=server_name
                )
        except (OSError, TimeoutError) as error:
            raise NoConnectionError(str(error)) from error
        return line

    def _sweep(self) -> None:
        now = time.perf_counter()
        for line in [line for line in self.in_flight if line.deadline < now]:
            line.hang_up("timed_out")
        self._sweep_timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)


class Phone:
    """A caller that keeps one line and dials again when it has gone."""

    def __init__(self, network: Network, *, limit_seconds: float = 10.0) -> None:
        self.network = network
        self._limit_seconds = limit_seconds
        self._line: Line | None = None

    @property
    def is_connected(self) -> bool:
        """Whether a request would go out at once."""
        return self._line is not None and self._line.is_open

    async def connect(self) -> None:
        """Dial, unless the line stands. Raises `NoConnectionError`."""
        if not self.is_connected:
            self._line = await self.network.connect(limit_seconds=self._limit_seconds)

    async def send(self, message: bytes, *, cut_after_seconds: float | None = None) -> Answer:
        """Send composed bytes; with `cut_after_seconds`, hang up that long after sending and lose the reply.

        Raises `NoConnectionError` where nothing was sent, `NoAnswerError` where the outcome is not known.
        """
        line = self._line
        if line is None or not line.is_open:
            line = self._line = await self.network.connect(limit_seconds=self._limit_seconds)
        if cut_after_seconds is None:
            return await line.send(message, limit_seconds=self._limit_seconds)
        self.network.loop.call_later(cut_after_seconds, line.hang_up, "cut")
        await line.send(message, limit_seconds=self._limit_seconds)
        # The answer was quicker than the cut; the phone still never saw it.
        line.hang_up("cut")
        raise NoAnswerError("cut")

    async def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Compose and send; see `send` for what it raises."""
        return await self.send(self.network.compose(method, path, headers, body))

    def hang_up(self) -> None:
        """Close the line; a request in flight ends as `NoAnswerError`."""
        if self._line is not None:
            self._line.hang_up("cut")
