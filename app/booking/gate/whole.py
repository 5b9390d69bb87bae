"""Reads a request that came in one piece, and nothing else with it, as nearly every claim and every poll does.

The parser is uvicorn's, and as strict; but what it calls while it reads is C, too: lists that take the pieces, a dict
that takes the headers. It serves all connections of a worker, one after the other, since between two requests it
remembers nothing. What is not whole, or not alone, leaves it in the middle of something: then it is made anew, and the
same bytes are read again by the parser of their connection.
"""

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from app.core.web.headers import REQUEST_ID_NAME

# A claim of one child has some 800 bytes, one of ten children with a pass for every pool some 4 KiB.
_BYTES_MAX: Final = 8_192
_END_OF_HEAD: Final = b"\r\n\r\n"
_WANTED: Final = (
    b"connection",
    b"authorization",
    b"content-type",
    b"accept-language",
    b"if-none-match",
    REQUEST_ID_NAME,
)
# The value of each, or None.
Wanted = tuple[bytes | None, bytes | None, bytes | None, bytes | None, bytes | None, bytes | None]
_ASKING_FOR_MORE: Final = frozenset({b"expect", b"transfer-encoding", b"upgrade", b"proxy-connection"})
# With one of these an address is not yet a path.
_NO_PATH: Final = b"%?#"


class WholeReader:
    """Reads whole requests, with a body or without."""

    def __init__(self) -> None:
        self._urls: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._bodies: list[bytes] = []
        # One thing for each message that may end: to end one more is an error of the parser's.
        self._awaited: list[None] = []
        self._parser: Any = None

    def read(self, data: bytes) -> tuple[bytes, bytes, Wanted] | None:
        """Return the address, the body and the headers that the gate reads, of the request that is all of `data`.

        Of a header that comes twice the first counts. None for everything that needs more than to be read and answered:
        for what is incomplete, too long or wrong, for an address that is not yet a path, for headers that ask for more
        (`Expect`, `Upgrade`), and for every request after which the connection would not simply go on (HTTP/1.0,
        `Connection: close`).
        """
        length = len(data)
        if length > _BYTES_MAX:
            return None
        parser = self._parser or self._new_parser()
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._parser = None
            return None
        urls, headers, bodies, awaited = self._urls, self._headers, self._bodies, self._awaited
        if awaited or len(urls) != 1 or len(bodies) > 1:
            self._parser = None
            return None
        url, body = urls.pop(), bodies.pop() if bodies else b""
        # Even the first letter of another request would stay in the parser, and be read before somebody else's.
        is_alone = data.find(_END_OF_HEAD) + len(_END_OF_HEAD) + len(body) == length
        wanted_of = _wanted_among(tuple(headers))
        if wanted_of is None or not is_alone or parser.get_http_version() != "1.1":
            self._parser = None
            return None
        wanted = wanted_of((*headers.values(), None))
        # Of a second one only the parser knows.
        if wanted[0] is not None and (wanted[0].lower() != b"keep-alive" or data.lower().count(b"\nconnection:") > 1):
            # The parser has closed, and no longer says so when a message is over.
            self._parser = None
            return None
        awaited.append(None)
        headers.clear()
        return None if url.translate(None, _NO_PATH) != url else (url, body, wanted)

    def _new_parser(self) -> Any:
        for kept in (self._urls, self._headers, self._bodies, self._awaited):
            kept.clear()
        self._awaited.append(None)
        self._parser = HttpRequestParser(
            SimpleNamespace(
                on_url=self._urls.append,
                on_header=self._headers.setdefault,
                on_body=self._bodies.append,
                on_message_complete=self._awaited.pop,
            )
        )
        return self._parser


# Phones send few different sets of headers.
@lru_cache(maxsize=64)
def _wanted_among(names: tuple[bytes, ...]) -> Callable[[tuple[bytes | None, ...]], Wanted] | None:
    """Return what picks the wanted values out of those of headers with these names, and None behind them.

    None where a name comes twice in other letters, or asks for more than an answer.
    """
    lower = [name.lower() for name in names]
    if len(set(lower)) != len(lower) or not _ASKING_FOR_MORE.isdisjoint(lower):
        return None
    return itemgetter(*(lower.index(name) if name in lower else -1 for name in _WANTED))
