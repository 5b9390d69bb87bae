"""The HTTP protocol of a web worker: what is no HTTP at all is told as a problem, too."""

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.core.problems import MalformedHttp
from app.core.web.documents import problem_answer
from app.core.web.headers import request_id_for, with_common_headers


class ProblemProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with problem documents (RFC 9457) where it would answer in plain text."""

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not read, and hang up."""
        # What was not read has no headers: neither a language nor an id of its own.
        request_id = request_id_for(None)
        answer = problem_answer(MalformedHttp(msg), accept_language=None, request_id=request_id)
        headers = with_common_headers(answer.headers, request_id)
        headers += [(b"content-length", str(len(answer.body)).encode()), (b"connection", b"close")]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[answer.status] + head + b"\r\n" + answer.body)
        self.transport.close()
