"""Writes problem documents (RFC 9457): the only place that does, for the API, the gate and the HTTP protocol alike.

It knows no framework. A refusal at the opening is as frequent as a place, so what is the same for all is made once.
"""

import json
from collections.abc import Mapping
from datetime import date, datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, NamedTuple, cast

import msgspec

from app.core.clock import iso
from app.core.field_codes import Language
from app.core.metrics import UNAVAILABLE
from app.core.problems import KEPT_HEADER_BYTES_MAX, PROBLEM_MEDIA_TYPE, Problem, language_of
from app.core.web.headers import RawHeaders, with_common_headers

# Answers that have no body, nor the length of one (RFC 9110, section 8.6).
NO_BODY_STATUSES: Final = frozenset({204, 304})
_UNAUTHORIZED: Final = 401
# RFC 9110, section 15.5.2, wants a challenge in every 401.
_CHALLENGE: Final = "Bearer"
# Stands for the id of a request that is not known yet: no part of any text.
_ID_SLOT: Final = "{request_id}"

_encode: Final = msgspec.json.Encoder(enc_hook=str).encode


class Framed(NamedTuple):
    """An answer as a transport writes it, but for the id of the request, which is to join the pieces.

    It fits under the same `more_headers` (the very object), and for an id of the same length.
    """

    more_headers: bytes
    id_length: int
    pieces: tuple[bytes, ...]


class Answer:
    """An answer, as every transport can carry it. Header names are lower case; `Content-Length` is not among them.

    One that is told to many in the same words is made once, with a slot where it names the request; what a transport
    has made of its head it may keep in `written_head`, and what it writes around the id in `framed`.
    """

    __slots__ = ("around_id", "body", "framed", "headers", "status", "written_head")

    def __init__(self, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.around_id: tuple[bytes, bytes] | None = None
        self.written_head: bytes | None = None
        self.framed: Framed | None = None

    def body_for(self, request_id: bytes) -> bytes:
        """Return the body that this request gets."""
        return self.body if self.around_id is None else request_id.join(self.around_id)


def as_asgi(answer: Answer, request_id: str, *, is_head: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an answer as the two messages of ASGI, with the headers that every answer carries.

    To `HEAD` everything is told but the body (RFC 9110, section 9.3.2).
    """
    headers = with_common_headers(answer.headers, request_id)
    body = answer.body_for(request_id.encode("ascii"))
    if answer.status not in NO_BODY_STATUSES:
        headers.append((b"content-length", b"%d" % len(body)))
    return (
        {"type": "http.response.start", "status": answer.status, "headers": headers},
        {"type": "http.response.body", "body": b"" if is_head else body},
    )


def _fixed(language: Language) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-language", language.encode()),
        (b"vary", b"Accept-Language"),
    )


_FIXED: Final[Mapping[Language, tuple[tuple[bytes, bytes], ...]]] = {"zh-CN": _fixed("zh-CN"), "en": _fixed("en")}


def problem_answer(problem: Problem, *, accept_language: bytes | None, request_id: str) -> Answer:
    """Return the answer that tells this problem, in the language asked for and without the headers of all answers.

    `accept_language` is the header as it came.
    """
    if not problem.shared:
        return _own_answer(problem, _language_in(accept_language), request_id)
    # Phones send few different headers. A long one is no phone's, and is not kept.
    if accept_language is None or len(accept_language) <= KEPT_HEADER_BYTES_MAX:
        return _kept_answer(problem, accept_language)
    return _shared_answer(problem, _language_in(accept_language))


def _language_in(accept_language: bytes | None) -> Language:
    return language_of((accept_language or b"").decode("latin-1"))


def _own_answer(problem: Problem, language: Language, request_id: str) -> Answer:
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        UNAVAILABLE.labels(problem.code).inc()
    document = problem.document(language=language, request_id=request_id)
    for name in problem.extra:
        document[name] = _plain(document[name])
    return Answer(problem.status, _headers_of(problem, language), _written(document))


@lru_cache(maxsize=64)
def _kept_answer(problem: Problem, accept_language: bytes | None) -> Answer:
    return _shared_answer(problem, _language_in(accept_language))


@lru_cache(maxsize=64)
def _shared_answer(problem: Problem, language: Language) -> Answer:
    """Return what everybody is told in the same words: each hears only the id of the own request besides."""
    body = _written(problem.document(language=language, request_id=_ID_SLOT))
    before, slot, after = body.partition(_ID_SLOT.encode())
    assert slot  # noqa: S101 - every document names its request
    answer = Answer(problem.status, _headers_of(problem, language), body)
    answer.around_id = before, after
    return answer


def _headers_of(problem: Problem, language: Language) -> tuple[tuple[bytes, bytes], ...]:
    headers: RawHeaders = [*_FIXED[language]]
    if problem.retry_after_seconds is not None:
        headers.append((b"retry-after", str(problem.retry_after_seconds).encode()))
    if problem.status == _UNAUTHORIZED and "WWW-Authenticate" not in problem.headers:
        headers.append((b"www-authenticate", _CHALLENGE.encode()))
    headers.extend((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in problem.headers.items())
    return tuple(headers)


def _written(document: Mapping[str, object]) -> bytes:
    try:
        return _encode(document)
    except (UnicodeEncodeError, OverflowError):
        # Half a surrogate pair, or a number of more than 64 bits; whatever put it here, the answer must still be sent.
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="replace")


def _plain(value: object) -> object:
    """Return what JSON has no word for as the API writes it elsewhere."""
    match value:
        case datetime():
            return iso(value)
        case date():
            return value.isoformat()
        case dict():
            return {str(name): _plain(item) for name, item in cast("dict[object, object]", value).items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in cast("list[object]", value)]
        case _:
            return value
