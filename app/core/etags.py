"""Entity tags for catalogue answers: who has the newest already is told so, in 304 and no body (RFC 9110, 13.1.2)."""

from hashlib import blake2b
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

# 96 bits: two bodies of one address never meet by chance.
_DIGEST_BYTES: Final = 12
# May be kept by anybody, and must be asked about before each use.
REVALIDATE: Final = "no-cache"
# May be kept by the phone of the account only.
PRIVATE_REVALIDATE: Final = "private, no-cache"
# What a route declares in `responses=`, so that it stands in the OpenAPI document.
NOT_MODIFIED_RESPONSE: Final[dict[int | str, dict[str, Any]]] = {
    304: {"description": "Unchanged since the answer whose ETag was sent in `If-None-Match`."}
}


def etag_of(body: bytes) -> str:
    """Return the strong entity tag of a body, quoted as the header wants it."""
    return f'"{blake2b(body, digest_size=_DIGEST_BYTES).hexdigest()}"'


def has_newest(if_none_match: str | None, etag: str) -> bool:
    """Tell whether one of the tags in `If-None-Match` is this one; compared weakly, as the header demands."""
    if not if_none_match:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in tags or "*" in tags


def tagged_response(
    request: Request, body: bytes, *, etag: str | None = None, cache_control: str = REVALIDATE
) -> Response:
    """Return the body as JSON with its tag, or 304 where the caller has it already."""
    tag = etag or etag_of(body)
    headers = {"ETag": tag, "Cache-Control": cache_control}
    if has_newest(request.headers.get("if-none-match"), tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body, media_type="application/json", headers=headers)
