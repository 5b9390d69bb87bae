"""The HTTP protocol of a web worker: what is no HTTP at all is told as a problem, too."""

import secrets

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.core.problems import PROBLEM_MEDIA_TYPE, MalformedHttp


class ProblemProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with problem documents (RFC 9457) where it would answer in plain text."""

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not read, and hang up."""
        document = MalformedHttp(msg).document(language="zh-CN", request_id=secrets.token_hex(12))
        body = msgspec.json.encode(document)
        head = f"content-type: {PROBLEM_MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[400] + head.encode("ascii") + body)
        self.transport.close()
