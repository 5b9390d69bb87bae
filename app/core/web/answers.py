"""Writes problem documents (RFC 9457) in the caller's language."""

import json
from collections.abc import Mapping
from datetime import date, datetime
from typing import Final
from uuid import UUID

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from app.core.clock import iso
from app.core.problems import PROBLEM_MEDIA_TYPE, Language, Problem, language_of

# The key of the request's id in the ASGI scope's `state`, where `request.state.request_id` finds it.
REQUEST_ID_STATE: Final = "request_id"


def request_id_of(scope: Scope) -> str:
    """Return the id that the edge gave this request, or "" where no edge stands in front."""
    state: Mapping[str, object] = scope.get("state", {})
    return str(state.get(REQUEST_ID_STATE, ""))


def language_for(scope: Scope) -> Language:
    """Return the language that this request asked for."""
    return language_of(Headers(scope=scope).get("accept-language"))


def problem_response(problem: Problem, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer to this request that tells the problem; `headers` are sent along (`Allow`, …)."""
    language = language_for(scope)
    document = problem.document(language=language, request_id=request_id_of(scope))
    response = Response(
        # A lone surrogate cannot be written as UTF-8; whatever put one here, the answer must still be sent.
        json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=_plain).encode(errors="replace"),
        status_code=problem.status,
        media_type=PROBLEM_MEDIA_TYPE,
        headers={"Content-Language": language, "Vary": "Accept-Language", **(headers or {})},
    )
    if problem.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(problem.retry_after_seconds)
    return response


def _plain(value: object) -> object:
    """Return what JSON has no word for as the API writes it elsewhere."""
    match value:
        case datetime():
            return iso(value)
        case date():
            return value.isoformat()
        case UUID():
            return str(value)
        case set() | frozenset() | tuple():
            return list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - any items
        case _:
            return str(value)
