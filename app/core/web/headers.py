"""What every answer carries, whoever wrote it: the request's id, and headers that browsers obey.

Works on headers as ASGI has them (lower-case names, bytes), since the gate answers without a framework.
"""

import itertools
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Final

RawHeaders = list[tuple[bytes, bytes]]

REQUEST_ID_HEADER: Final = "X-Request-Id"
REQUEST_ID_NAME: Final = REQUEST_ID_HEADER.lower().encode()
# What a front-end or a proxy may choose as an id: nothing that could forge a line of a log.
_SANE_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{8,64}")

# An id names a request and guards nothing, so it is counted: randomness for each would cost a system call.
_process: Final = secrets.token_hex(8)
_numbers: Final = itertools.count()

_COMMON: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    # Catalogue answers say for themselves how long they are good; everything else may be somebody's own.
    (b"cache-control", b"no-store"),
)


def headers_by_name(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers by their names; of one that comes twice the first counts, as it does in the application."""
    return dict(reversed(headers))


def announced_bytes(content_length: bytes | None) -> int:
    """Return how long a body is that a `Content-Length` announces; 0 where it announces nothing that is a number."""
    return int(content_length[:20]) if content_length and content_length.isdigit() else 0


def standing_headers(
    policy: str, quota: int, window_seconds: int, *, remaining: int, reset_seconds: int
) -> dict[str, str]:
    """Return how a caller stands under a limit (draft-ietf-httpapi-ratelimit-headers-11), as structured fields."""
    return {
        "RateLimit-Policy": f'"{policy}";q={quota};w={window_seconds}',
        "RateLimit": f'"{policy}";r={remaining};t={reset_seconds}',
    }


def request_id_for(given: bytes | None) -> str:
    """Return the caller's own id for this request where it is sane (8 to 64 of `A-Za-z0-9._-`), else a new one."""
    if given and _SANE_REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{_process}{next(_numbers) & 0xFFFFFFFF:08x}"


def with_common_headers(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> RawHeaders:
    """Return these headers and those that every answer carries, each unless it is there already; the id always."""
    full = with_standing_headers(header for header in headers if header[0] != REQUEST_ID_NAME)
    full.append((REQUEST_ID_NAME, request_id.encode("ascii")))
    return full


def with_standing_headers(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """Return these headers and those that are the same in every answer, each unless it is there already."""
    full = list(headers)
    names = {name for name, _ in full}
    full.extend(header for header in _COMMON if header[0] not in names)
    return full
