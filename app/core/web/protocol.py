"""The HTTP protocol of a web worker: what is no HTTP is told as a problem too, and what a phone can cost is bounded."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.core import metrics
from app.core.problems import HeadTooLarge, MalformedHttp, Problem, RequestTimeout, Unavailable, jittered_ms
from app.core.web.documents import NO_BODY_STATUSES, Answer, Framed, as_asgi, problem_answer
from app.core.web.headers import REQUEST_ID_NAME, announced_bytes, request_id_for, with_standing_headers

# Address and headers of one request. The parser itself has no bound for a header and would gather it in memory.
# A pass for ten people and every pool has about 2 KiB.
HEAD_LIMIT_BYTES: Final = 65_536
# What comes with the chunks of a body and is not the body: their sizes and extensions, and fields behind the last. As
# much as a head, and for each byte of the body more than the five that a chunk of one byte has around it.
_FRAMING_LIMIT_BYTES: Final = HEAD_LIMIT_BYTES
_FRAMING_BYTES_A_BYTE: Final = 8
# The parser obeys them wherever they stand; we would not know of it (RFC 9110, section 6.5.1, forbids them there).
_ONLY_IN_HEAD: Final = frozenset({b"connection", b"proxy-connection", b"transfer-encoding", b"upgrade"})
# As headers are written.
_AROUND_A_HEADER_BYTES: Final = len(b": \r\n")
_FULL_RETRY_MS: Final = 1_000
# Requests of one connection that may wait for the answer to another. Phones send none ahead; what is sent ahead without
# end, by somebody who reads no answer, must not fill the memory.
AHEAD_LIMIT: Final = 16
_END_OF_HEAD: Final = b"\r\n\r\n"
_HEAD: Final = b"%b%b" + REQUEST_ID_NAME + b": %b\r\ncontent-length: %d\r\n\r\n"
# Stands for the id of a request while a head is written. No header has such a sign.
_ID_SLOT: Final = b"\0"
_HEAD_ALONE: Final = b"%b%b" + REQUEST_ID_NAME + b": %b\r\n\r\n"


def written(answer: Answer, request_id: str, *, more_headers: bytes = b"", is_head: bool = False) -> bytes:
    """Return an answer as HTTP/1.1 writes it, with the headers that every answer carries.

    `more_headers` are whole lines. To `HEAD` everything is told but the body (RFC 9110, section 9.3.2).
    """
    id_ = request_id.encode("ascii")
    if answer.around_id is not None and not is_head:
        # What many are told, one after the other.
        framed = answer.framed
        if framed is None or framed.more_headers is not more_headers or framed.id_length != len(id_):
            framed = answer.framed = _framed(answer, answer.around_id, more_headers, len(id_))
        return id_.join(framed.pieces)
    head = _head_of(answer)
    if answer.status in NO_BODY_STATUSES:
        return _HEAD_ALONE % (head, more_headers, id_)
    body = answer.body_for(id_)
    return _HEAD % (head, more_headers, id_, len(body)) + (b"" if is_head else body)


def _framed(answer: Answer, around_id: tuple[bytes, bytes], more_headers: bytes, id_length: int) -> Framed:
    before, after = around_id
    length = len(before) + id_length + len(after)
    head, end_of_head = (_HEAD % (_head_of(answer), more_headers, _ID_SLOT, length)).split(_ID_SLOT)
    return Framed(more_headers, id_length, (head, end_of_head + before, after))


def _head_of(answer: Answer) -> bytes:
    head = answer.written_head
    if head is None:
        head = answer.written_head = _written_head(answer.status, answer.headers)
    return head


@lru_cache(maxsize=64)
def _written_head(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    return STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % header for header in with_standing_headers(headers))


def _refusing(problem: Problem) -> Callable[..., Awaitable[None]]:
    """Return an application that answers anything with this problem."""

    async def refuse(_scope: object, _receive: object, send: Callable[[Any], Awaitable[None]]) -> None:
        request_id = request_id_for(None)
        for message in as_asgi(problem_answer(problem, accept_language=None, request_id=request_id), request_id):
            await send(message)

    return refuse


class _BodyUnreadError(Exception):
    """Ends the parsing at a request whose body the parser would take for the next request."""


class _FieldOutOfPlaceError(Exception):
    """Ends the parsing at a field behind a body that says how the message or its connection goes on."""


class _HeadTooLongError(Exception):
    """Ends the parsing at a request whose head is longer than one may be."""


class _TooFarAheadError(Exception):
    """Ends the parsing of a piece in which more is sent ahead than will be answered."""


class ProblemProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with problem documents (RFC 9457) where it would answer in plain text, and with bounds.

    - The head of a request, and what is around the chunks of its body, may have so many bytes.
    - Fields behind a body are no headers, and nobody here wants them (RFC 9110, section 6.5.1).
    - A request has as long to arrive, from its first byte to its last, as a connection may be idle; as long has a new
      connection until the first byte.
    - So many requests may wait for the answer to another: those within the bound are answered, and then the connection
      is closed (RFC 9112, section 9.3.2, has clients expect that).
    - A worker keeps `connection_limit` connections, where one is given.
    """

    # None only after the connection is lost, when nothing is read any more.
    parser: Any
    _in_head = False
    _in_body = False
    # The parser of this connection is in no message, not even by a letter.
    _is_between_messages = True
    _head_bytes = 0
    # Of the piece that is being read: all of it, what of it was body so far, and whether a request has begun in it.
    _piece_bytes = 0
    _body_bytes = 0
    _has_begun = False
    _framing_bytes = 0
    _reads_on = True
    # Stands while a request has begun to arrive and has not come to its end.
    _arrival_timer: asyncio.TimerHandle | None = None

    def __init__(self, *given: Any, connection_limit: int | None = None, **named: Any) -> None:
        """Make one for a connection. All but `connection_limit` is uvicorn's."""
        super().__init__(*given, **named)
        self._connection_limit = connection_limit

    @property
    def owes_an_answer(self) -> bool:
        """Tell whether a request of this connection is still to be answered."""
        # None before the first request.
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for the first request, but not for ever; or send the phone away, where there are too many."""
        super().connection_made(transport)
        if self._connection_limit is not None and len(self.connections) > self._connection_limit:
            self._reads_on = False
            metrics.CONNECTIONS_REFUSED.inc()
            self._refuse(Unavailable(retry_after_ms=jittered_ms(_FULL_RETRY_MS)))
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.stop_idling()
        self._stop_waiting_for_the_rest()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Count from here what has come of this request's head."""
        self.begin_message()
        super().on_message_begin()

    def begin_message(self) -> None:
        """Begin to count, and to wait, for another request."""
        self.bound_what_is_ahead()
        self.stop_idling()
        self._stop_waiting_for_the_rest()
        self._in_head, self._has_begun, self._is_between_messages = True, True, False
        self._head_bytes = self._framing_bytes = 0

    def bound_what_is_ahead(self) -> None:
        """Read no more of a connection on which so many wait, and close it after the last of them."""
        if len(self.pipeline) >= AHEAD_LIMIT:
            last, _ = self.pipeline[0]
            last.keep_alive = False
            self._reads_on = False
            raise _TooFarAheadError

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a field that comes behind the body is none."""
        if self._in_head:
            super().on_header(name, value)
        else:
            self.look_at_trailer(name)

    def look_at_trailer(self, name: bytes) -> None:
        """Refuse a field that must not stand behind a body; of all others nothing is kept."""
        if name.lower() in _ONLY_IN_HEAD:
            raise _FieldOutOfPlaceError

    def on_headers_complete(self) -> None:
        """Let the request begin."""
        self.look_at_head()
        # The answer to the one before may have come while this one was on its way.
        self.stop_idling()
        self._in_head = False
        super().on_headers_complete()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Let the request have its end."""
        self._in_body, self._is_between_messages = False, True
        super().on_message_complete()

    def look_at_head(self) -> None:
        """Refuse a head that is too long, and a request whose body would not be read as one.

        The parser takes the body of a request that asks for another protocol for what follows. Read on, it would be the
        next request: of whoever shares this connection, where a proxy is in front.
        """
        # Most are far too short to be measured.
        if self._head_bytes + self._piece_bytes > HEAD_LIMIT_BYTES and self._measured_head() > HEAD_LIMIT_BYTES:
            raise _HeadTooLongError
        if self.parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and announced_bytes(value))
            for name, value in self.headers
        ):
            raise _BodyUnreadError

    def _measured_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + _AROUND_A_HEADER_BYTES for name, value in self.headers)

    def data_received(self, data: bytes) -> None:
        """Read on, unless a head, or what is around a body, has grown too long by now."""
        if not self._reads_on:
            return
        was_in_body = self._in_body
        self._piece_bytes, self._body_bytes, self._has_begun = len(data), 0, False
        try:
            self._parse(data)
        except HttpParserError as error:
            if self._reads_on:
                is_too_long = isinstance(error.__context__, _HeadTooLongError)
                self._refuse(HeadTooLarge() if is_too_long else MalformedHttp("Invalid HTTP request received."))
            return
        if self._is_between_messages or self.transport.is_closing():
            return
        if self._in_head:
            # Of what came in one piece, the requests before this one end before it does: most with an empty line.
            before, end, _ = data.rpartition(_END_OF_HEAD)
            self._head_bytes += len(data) - len(before) - len(end)
            if self._head_bytes > HEAD_LIMIT_BYTES:
                self._refuse(HeadTooLarge())
                return
        elif was_in_body and not self._has_begun:
            # Pieces with a head in them are left out: that was measured.
            self._framing_bytes += len(data) - self._body_bytes * (1 + _FRAMING_BYTES_A_BYTE)
            if self._framing_bytes > _FRAMING_LIMIT_BYTES:
                self._refuse(MalformedHttp("There is far more around the chunks of the body than in them."))
                return
        if self._arrival_timer is None:
            self._arrival_timer = self.loop.call_later(self.timeout_keep_alive, self.give_up)

    def _parse(self, data: bytes) -> None:
        """Have the parser read all of this.

        Nothing here is spoken but HTTP; who asks for something else is answered in HTTP, and goes on in it (RFC 9110,
        section 7.8). So the parser, which stops behind such a request, has to read what follows: if the rest of a piece
        were dropped, the next piece would be read from the middle of a request.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as asked:
                if self.parser.get_method() == b"CONNECT":
                    # What follows would be a tunnel's, and is no request of this connection.
                    self.cycle.keep_alive = False
                    self._reads_on = False
                    return
                data = data[asked.args[0] :]
            else:
                return

    def stop_idling(self) -> None:
        """Call off that the connection ends for its idleness: a request came."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _stop_waiting_for_the_rest(self) -> None:
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()
            self._arrival_timer = None

    def give_up(self) -> None:
        """Wait no longer for the rest of a request."""
        self._arrival_timer = None
        if not self._is_between_messages and not self.transport.is_closing():
            self._refuse(RequestTimeout())

    def _refuse(self, problem: Problem) -> None:
        if not self._in_body and self.owes_an_answer:
            # It was sent ahead of an answer that must come first, and would be taken for it: that one ends here.
            self.cycle.keep_alive = self._reads_on = False
            return
        if self._in_body and self.pipeline:
            # So was this one, which is told when its turn comes.
            cycle, _ = self.pipeline[0]
            cycle.keep_alive = self._reads_on = False
            self.pipeline[0] = cycle, _refusing(problem)
            return
        if self._in_body and self.cycle.response_started:
            # It has its answer already, or half of it.
            self.transport.close()
            return
        # What was not read has no headers: neither a language nor an id of its own.
        request_id = request_id_for(None)
        answer = problem_answer(problem, accept_language=None, request_id=request_id)
        self.transport.write(written(answer, request_id, more_headers=b"connection: close\r\n"))
        self.transport.close()
