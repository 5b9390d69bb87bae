"""The HTTP protocol of a web worker: what is no HTTP at all is told as a problem, too."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.core.problems import HeadTooLarge, MalformedHttp, Problem
from app.core.web.documents import problem_answer
from app.core.web.headers import request_id_for, with_common_headers

# Address and headers of one request. The parser itself has no bound for a header and would gather it in memory.
# A pass for ten people and every pool has about 2 KiB.
HEAD_LIMIT_BYTES: Final = 65_536


class ProblemProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with problem documents (RFC 9457) where it would answer in plain text, and bounded heads."""

    _in_head = False
    _head_bytes = 0

    def on_message_begin(self) -> None:
        """Count from here what has come of this request's head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Let the request begin."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Read on, unless a head has grown too long by now. One that comes in a single piece is as long as that."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
                self._refuse(HeadTooLarge())

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not read, and hang up."""
        self._refuse(MalformedHttp(msg))

    def _refuse(self, problem: Problem) -> None:
        # What was not read has no headers: neither a language nor an id of its own.
        request_id = request_id_for(None)
        answer = problem_answer(problem, accept_language=None, request_id=request_id)
        headers = with_common_headers(answer.headers, request_id)
        headers += [(b"content-length", str(len(answer.body)).encode()), (b"connection", b"close")]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[answer.status] + head + b"\r\n" + answer.body)
        self.transport.close()
