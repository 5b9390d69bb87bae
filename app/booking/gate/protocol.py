"""Carries the gate's requests straight from the socket: uvicorn's protocol, which answers them itself.

An ASGI call costs more than everything that the gate does for a "no": a scope, a task, two events, a coroutine. So a
request of the gate that is plain (see `_is_plain`) is read here, taken to the desk, and written back from wherever
the answer is known. A claim or a poll that came in one piece is read at once (see `whole`), everything else as it
comes. Every other request goes the way of ASGI, where `asgi.GateInFront` carries the gate as well, and all are held to
the same contract.

To uvicorn a `_Grab` stands for the cycle of a request: shutdown, and requests that were sent ahead of the answer to
this one, are its business as ever.
"""

import asyncio
from typing import Any, Final, Self

from app.booking.gate.desk import AVAILABILITY_SUFFIX, CLAIM_PATH, RELEASE_PATH, Desk, Request
from app.booking.gate.whole import Wanted, WholeReader
from app.core.problems import RequestTimeout
from app.core.web.documents import Answer, problem_answer
from app.core.web.headers import REQUEST_ID_NAME, announced_bytes, headers_by_name, request_id_for
from app.core.web.protocol import ProblemProtocol, written

# Under this name the application's lifespan hands the desk over (`state` of ASGI's lifespan).
DESK_STATE: Final = "desk"

_CLAIM_PATH: Final = CLAIM_PATH.encode()
_RELEASE_PATH: Final = RELEASE_PATH.encode()
_AVAILABILITY_SUFFIX: Final = AVAILABILITY_SUFFIX.encode()
_CLOSE: Final = b"connection: close\r\n"
_PUT_CLAIM: Final = b"PUT " + _CLAIM_PATH
_GET_RELEASE: Final = b"GET " + _RELEASE_PATH
# How a poll goes on behind the id of its release, and where.
_END_OF_POLL: Final = _AVAILABILITY_SUFFIX + b" "
_AFTER_ID: Final = len(_GET_RELEASE) + len("0190aaaa-0000-7000-8000-000000000000")

_whole_reader = WholeReader()


def _is_plain(url: bytes, headers: dict[bytes, bytes]) -> bool:
    """Tell whether nothing about a request needs more than to be read, and answered when it is."""
    return (
        b"expect" not in headers
        and b"transfer-encoding" not in headers
        # An address with one of these is not yet a path.
        and not (b"%" in url or b"?" in url or b"#" in url)
    )


class _Nobody:
    """Who waits for a message of the connection; of a grab nobody does."""

    def set(self) -> None:
        """Wake nobody."""


class _Grab(Request):
    """One request, from its head to its answer; to uvicorn, the cycle of the request."""

    __slots__ = ("disconnected", "keep_alive", "protocol", "response_complete")
    # What uvicorn wakes when the connection is gone.
    message_event = _Nobody()

    def __init__(
        self, protocol: "GateProtocol", method: str, path: str, headers: dict[bytes, bytes], *, keep_alive: bool
    ) -> None:
        super().__init__(method, path, headers, b"", request_id_for(headers.get(REQUEST_ID_NAME)))
        self.protocol = protocol
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False

    @classmethod
    def of_whole(cls, protocol: "GateProtocol", method: str, path: str, body: bytes, wanted: Wanted) -> Self:
        """Make what the constructor makes of a request that came whole."""
        self = cls.__new__(cls)
        self.method, self.path, self.body = method, path, body
        _, authorization, self.content_type, self.accept_language, self.if_none_match, request_id = wanted
        self.authorization = authorization or b""
        self.request_id = request_id_for(request_id)
        self.protocol = protocol
        self.keep_alive = True
        self.disconnected = self.response_complete = False
        return self

    def has_hung_up(self) -> bool:
        """Tell whether nothing can be answered any more."""
        # Not `disconnected`: uvicorn tells it to the last request only; another may still be in front of that one.
        return self.protocol.transport.is_closing()

    def reply(self, answer: Answer) -> None:
        """Write the answer, once, to the request that it belongs to and to no other."""
        protocol = self.protocol
        if self.response_complete or self.has_hung_up():
            return
        self.response_complete = True
        more_headers = protocol.standing_headers() if self.keep_alive else protocol.standing_headers() + _CLOSE
        protocol.transport.write(
            written(answer, self.request_id, more_headers=more_headers, is_head=self.method == "HEAD")
        )
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_grab_answered()


class GateProtocol(ProblemProtocol):
    """One connection of a web worker."""

    _grab: _Grab | None = None
    # uvicorn's own headers (the date), as it has them and as they are written; it makes a new list every second.
    _standing: tuple[object, bytes] = (None, b"")
    # A phone that asks ten times a second must not cost a timer each time: one stands, and looks when it goes off.
    _idle_timer: asyncio.TimerHandle | None = None
    _idle_since_seconds = 0.0
    _is_idle = False

    def data_received(self, data: bytes) -> None:
        """Take a claim or a poll that came in one piece at once; read everything else as it comes."""
        if data.startswith(_PUT_CLAIM):
            method = "PUT"
        elif data.startswith(_GET_RELEASE) and data.startswith(_END_OF_POLL, _AFTER_ID):
            method = "GET"
        else:
            super().data_received(data)
            return
        if not (self._is_between_messages and self._take_whole(method, data)):
            super().data_received(data)

    def _take_whole(self, method: str, data: bytes) -> bool:
        desk: Desk | None = self.app_state.get(DESK_STATE)
        if desk is None or not self._may_take_another or (whole := _whole_reader.read(data)) is None:
            return False
        url, body, wanted = whole
        if len(body) > desk.body_limit_bytes:
            return False
        self.stop_idling()
        self._is_idle = False
        grab = _Grab.of_whole(self, method, url.decode("latin-1"), body, wanted)
        self.cycle = grab  # pyright: ignore[reportAttributeAccessIssue] - stands for one
        desk.take(grab, grab.reply)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)
        # A request and its connection name each other. Left like that, everything that a phone had here would wait for
        # the garbage collector, and thousands who have gone would hold it up in the second of an opening.
        self.cycle = self._grab = None  # pyright: ignore[reportAttributeAccessIssue] - as it is before the first

    def on_message_begin(self) -> None:
        """Keep the head of a request; what ASGI wants to know of it is gathered only if it goes that way."""
        self.begin_message()
        self._is_idle = False
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a field that comes behind the body is none."""
        if self._in_head:
            self.headers.append((name.lower(), value))
        else:
            self.look_at_trailer(name)

    def on_headers_complete(self) -> None:
        """Keep a plain request of the gate, send every other the way of ASGI."""
        self.look_at_head()
        # The answer to the one before may have come while this one was on its way.
        self.stop_idling()
        self._is_idle = False
        if self.transport.is_closing():
            # It was said that no more is answered here, so no more is done (RFC 9112, section 9.6).
            self._in_head = False
            return
        desk: Desk | None = self.app_state.get(DESK_STATE)
        url = self.url
        if desk is not None and (
            url.startswith(_CLAIM_PATH) or (url.startswith(_RELEASE_PATH) and url.endswith(_AVAILABILITY_SUFFIX))
        ):
            headers = headers_by_name(self.headers)
            method, path = self.parser.get_method().decode("ascii"), url.decode("latin-1")
            authorization = headers.get(b"authorization", b"")
            # Nobody waits for what comes with any other method: it means nothing there.
            limit_bytes = desk.body_limit_bytes if method == "PUT" else 0
            if (
                self._may_take_another
                and _is_plain(url, headers)
                and not self.parser.should_upgrade()
                and announced_bytes(headers.get(b"content-length")) <= limit_bytes
                and desk.is_mine(method, path, authorization)
            ):
                self._in_head = False
                # Thousands wait for their answers at a time: what nobody reads any more should not wait with them.
                self.headers = []
                keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
                # Its body comes before the answer, and no other request of this connection in between.
                grab = _Grab(self, method, path, headers, keep_alive=keep_alive)
                self.cycle = self._grab = grab  # pyright: ignore[reportAttributeAccessIssue] - stands for one
                return
        self._go_by_asgi()

    def _go_by_asgi(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    @property
    def _may_take_another(self) -> bool:
        """Tell whether answers may leave at once: in the order of their requests, and no faster than they are read."""
        return not self.owes_an_answer and not self.flow.write_paused

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, which is as long as was announced and no longer."""
        grab = self._grab
        if grab is None:
            super().on_body(body)
        else:
            grab.body += body

    def on_message_complete(self) -> None:
        """Take the request to the desk."""
        self._is_between_messages = True
        grab = self._grab
        if grab is None:
            super().on_message_complete()
            return
        self._grab = None
        desk: Desk = self.app_state[DESK_STATE]
        desk.take(grab, grab.reply)

    def give_up(self) -> None:
        """Wait no longer for the rest of a request: the answer to a grab is its own."""
        grab = self._grab
        if grab is None:
            super().give_up()
            return
        self._grab = None
        grab.keep_alive = False
        grab.reply(problem_answer(RequestTimeout(), accept_language=grab.accept_language, request_id=grab.request_id))

    def on_grab_answered(self) -> None:
        """Go on with what was sent ahead, or wait for the next request, but not for ever."""
        if self.pipeline:
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self._is_idle = True
        self._idle_since_seconds = self.loop.time()
        if self._idle_timer is None and not self.transport.is_closing():
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)

    def _look_if_idle(self) -> None:
        self._idle_timer = None
        if not self._is_idle:
            # The answer to what came since sets the next.
            return
        rest_seconds = self._idle_since_seconds + self.timeout_keep_alive - self.loop.time()
        if rest_seconds > 0:
            self._idle_timer = self.loop.call_later(rest_seconds, self._look_if_idle)
        else:
            self.timeout_keep_alive_handler()

    def standing_headers(self) -> bytes:
        """Return uvicorn's own headers as whole lines."""
        current: Any = self.server_state.default_headers
        kept, lines = GateProtocol._standing
        if kept is not current:
            lines = b"".join(b"%b: %b\r\n" % header for header in current)
            GateProtocol._standing = (current, lines)
        return lines
