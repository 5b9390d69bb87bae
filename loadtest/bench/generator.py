"""The inside of the open loop: one run of a schedule, over keep-alive connections, as cheap as Python can be.

It has one core, with the engines, and must keep up with a server that has another to itself. So it speaks to sockets
itself, makes no object for a request, and reads no more of an answer than its status and where it ends.
"""

import array
import asyncio
import ctypes
import os
import re
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from loadtest.bench.latencies import Latencies, latencies_of

# How numbers are kept in arrays, and arrivals in the spec: as doubles.
DOUBLES: Final = "d"
# The schedule begins so long after everything is ready.
_LEAD_SECONDS: Final = 0.5
# Arrivals that fall closer together than this may leave at one wake-up: a wake-up costs as much as a request.
_WAKE_UP_SECONDS: Final = 0.0001
# Requests that leave before answers are looked at again, so that a burst does not make its own answers look slow.
_SENT_AT_ONCE: Final = 32
_CONNECTING_AT_ONCE: Final = 100
_READ_BYTES: Final = 16_384
_HEAD_END: Final = b"\r\n\r\n"
# Every server that is measured says how long its answers are; none sends chunks.
_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: *(\d+)\r")
_CLOSE: Final = re.compile(rb"\r\n[Cc]onnection: *close\r")


class Spec(msgspec.Struct, frozen=True):
    """What the generator is told, by a file in MessagePack.

    `replay` is a file of requests; `arrivals` are seconds from the start, as doubles in one piece. With a `core` of
    None it runs wherever there is room.
    """

    host: str
    port: int
    replay: str
    arrivals: bytes
    connections: int
    connections_max: int
    patience_seconds: float
    core: int | None


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("every", _Moment), ("first", _Moment))


class _Alarm:
    """Wakes the loop within microseconds (timerfd_create(2)): the loop's own timers count whole milliseconds."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._set_time = libc.timerfd_settime
        self.descriptor: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, seconds: float) -> None:
        """Go off once, so many seconds from now."""
        whole = int(seconds)
        # Nothing at all would switch it off.
        setting = _Setting(_Moment(0, 0), _Moment(whole, max(int((seconds - whole) * 1e9), 1)))
        self._set_time(self.descriptor, 0, ctypes.byref(setting), None)

    def acknowledge(self) -> None:
        """Take note that it has gone off."""
        os.read(self.descriptor, 8)


class _Line:
    """One connection, one request at a time: a request is one write, an answer a look at its status and its length."""

    __slots__ = ("_generator", "_kept", "connection", "is_open", "number")

    def __init__(self, generator: "Generator", connection: socket.socket) -> None:
        self._generator = generator
        self._kept = b""
        self.connection = connection
        self.is_open = True
        # Of the arrival whose answer is awaited.
        self.number = -1

    def ask(self, number: int, request: bytes) -> None:
        self.number = number
        try:
            sent = self.connection.send(request)
        except OSError:
            sent = 0
        if sent != len(request):
            # A request fits into the buffer of a connection that waits for nothing, or the connection is broken.
            self._generator.line_broke(self)

    def on_readable(self) -> None:
        try:
            piece = self.connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        now_seconds = time.monotonic()
        text = self._kept + piece if self._kept else piece
        head_bytes = text.find(_HEAD_END)
        if piece and head_bytes >= 0:
            found = _LENGTH.search(text, 0, head_bytes + 2)
            missing = head_bytes + len(_HEAD_END) + (int(found[1]) if found else 0) - len(text)
        else:
            missing = 1
        if not piece or missing < 0 or self.number < 0:
            # Closed, or it says more than it was asked.
            self._generator.line_broke(self)
        elif missing:
            self._kept = text
        else:
            self._kept = b""
            number, self.number = self.number, -1
            self._generator.answered(number, int(text[9:12]), now_seconds)
            if _CLOSE.search(text, 0, head_bytes + 2):
                self._generator.line_broke(self)
            else:
                self._generator.line_idle(self)


class Generator:
    """One run of a schedule."""

    def __init__(self, spec: Spec, requests: Sequence[bytes], arrivals: Sequence[float]) -> None:
        count = len(arrivals)
        self._spec = spec
        self._requests = requests
        self._arrivals = arrivals
        self._loop = asyncio.get_running_loop()
        self._alarm = _Alarm()
        self._next = 0
        self._started_seconds = 0.0
        # By the number of the arrival.
        self._answered_seconds = array.array(DOUBLES, bytes(8 * count))
        self._late_seconds = array.array(DOUBLES, bytes(8 * count))
        self._statuses = array.array("H", bytes(2 * count))
        self._unsettled = count
        self._all_settled = asyncio.Event()
        # The one that has been idle for the longest is the next: a crowd asks over all of its connections.
        self._idle: deque[_Line] = deque()
        self._waiting: deque[int] = deque()
        self._lines: set[_Line] = set()
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self) -> Latencies:
        """Run the schedule, and return what came of it."""
        wanted = min(self._spec.connections, self._spec.connections_max)
        for first in range(0, wanted, _CONNECTING_AT_ONCE):
            await asyncio.gather(*(self._open() for _ in range(first, min(first + _CONNECTING_AT_ONCE, wanted))))
        self._loop.add_reader(self._alarm.descriptor, self._on_alarm)
        self._started_seconds = time.monotonic() + _LEAD_SECONDS
        self._alarm.set(_LEAD_SECONDS + self._arrivals[0])
        try:
            async with asyncio.timeout(_LEAD_SECONDS + self._arrivals[-1] + self._spec.patience_seconds):
                await self._all_settled.wait()
        except TimeoutError:
            # Those still unsettled have no status, so they count as lost.
            pass
        finally:
            self._loop.remove_reader(self._alarm.descriptor)
            os.close(self._alarm.descriptor)
            connections = len(self._lines)
            for task in self._opening:
                task.cancel()
            for line in tuple(self._lines):
                self._close(line)
        return latencies_of(
            self._arrivals,
            answered_seconds=self._answered_seconds,
            late_seconds=self._late_seconds,
            statuses=self._statuses,
            started_seconds=self._started_seconds,
            connections=connections,
        )

    async def _open(self) -> None:
        connecting = socket.socket()
        try:
            connecting.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(connecting, (self._spec.host, self._spec.port))
        except BaseException:
            connecting.close()
            raise
        line = _Line(self, connecting)
        self._lines.add(line)
        self._loop.add_reader(connecting, line.on_readable)
        self.line_idle(line)

    def _on_alarm(self) -> None:
        self._alarm.acknowledge()
        self._send_what_is_due()

    def _send_what_is_due(self) -> None:
        arrivals, late, requests = self._arrivals, self._late_seconds, self._requests
        first = self._next
        for number in range(first, min(first + _SENT_AT_ONCE, len(arrivals))):
            since_due_seconds = time.monotonic() - self._started_seconds - arrivals[number]
            if since_due_seconds < 0:
                self._alarm.set(max(-since_due_seconds, _WAKE_UP_SECONDS))
                return
            self._next += 1
            late[number] = since_due_seconds
            line = self._take_idle()
            if line is None:
                self._wait_for_a_line(number)
            else:
                line.ask(number, requests[number % len(requests)])
        if self._next < len(arrivals):
            self._loop.call_soon(self._send_what_is_due)

    def _take_idle(self) -> _Line | None:
        idle = self._idle
        while idle:
            line = idle.popleft()
            if line.is_open:
                return line
        return None

    def _wait_for_a_line(self, number: int) -> None:
        self._waiting.append(number)
        self._open_one_more()

    def _open_one_more(self) -> None:
        if len(self._lines) + len(self._opening) < self._spec.connections_max:
            task = self._loop.create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: "asyncio.Task[None]") -> None:
        self._opening.discard(task)
        if not task.cancelled() and task.exception() is not None and self._waiting:
            # Refused: whoever was to have this connection has none.
            self._waiting.popleft()
            self._settle()

    def line_idle(self, line: _Line) -> None:
        """Give a connection to whoever waits for one."""
        if self._waiting:
            number = self._waiting.popleft()
            line.ask(number, self._requests[number % len(self._requests)])
        else:
            self._idle.append(line)

    def line_broke(self, line: _Line) -> None:
        """Do without a connection, and without the answer that was awaited there."""
        if line.is_open:
            self._close(line)
            if line.number >= 0:
                # It keeps the status 0, which says so.
                self._settle()
            if self._waiting:
                # There is room for another one now.
                self._open_one_more()

    def _close(self, line: _Line) -> None:
        line.is_open = False
        self._lines.discard(line)
        self._loop.remove_reader(line.connection)
        line.connection.close()

    def answered(self, number: int, status: int, now_seconds: float) -> None:
        """Note an answer."""
        self._answered_seconds[number] = now_seconds - self._started_seconds
        self._statuses[number] = status
        self._settle()

    def _settle(self) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self._all_settled.set()
