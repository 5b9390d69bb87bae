"""The outermost layer of everything that is not the gate.

It gives the request an id, bounds its body, adds the headers that every answer carries, writes the one log line, and
is the last resort: whatever nobody caught becomes a problem document here, and a trace in the log.
"""

import re
import time
from collections.abc import Callable, Iterable
from typing import Final, cast

import structlog
from fastapi.routing import iter_route_contexts
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.logs import trace_of
from app.core.problems import BodyTooLarge
from app.core.web.answers import REQUEST_ID_STATE, problem_response
from app.core.web.failures import constraint_of, is_ours_to_mend, problem_for, sqlstate_of
from app.core.web.headers import (
    REQUEST_ID_NAME,
    announced_bytes,
    headers_by_name,
    request_id_for,
    with_common_headers,
)

log = structlog.stdlib.get_logger(__name__)

# A probe every second would drown the log.
_QUIET_PREFIX: Final = "/health/"
# Answered before it was read, by a phone that went away.
_GONE_STATUS: Final = 499


class Edge:
    """Wraps the application for HTTP; everything else (lifespan) passes through."""

    def __init__(self, app: ASGIApp, *, body_limit_bytes: int) -> None:
        self._app = app
        self._body_limit_bytes = body_limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens inside."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at_ns = time.monotonic_ns()
        headers = headers_by_name(scope["headers"])
        request_id = request_id_for(headers.get(REQUEST_ID_NAME))
        scope.setdefault("state", {})[REQUEST_ID_STATE] = request_id
        answer = _Answer(send, request_id)
        try:
            if announced_bytes(headers.get(b"content-length")) > self._body_limit_bytes:
                raise BodyTooLarge  # noqa: TRY301 - told like every other refusal, below
            await self._app(scope, self._bounded(receive), answer.send)
        except ClientDisconnect:
            # Nobody is there to be answered, and nothing of ours failed: phones lose their network all the time.
            pass
        except Exception as error:  # noqa: BLE001 - the last resort: nothing may leave here but an answer
            if is_ours_to_mend(error):
                _log_failure(error, scope, request_id)
            if not answer.status:
                await problem_response(problem_for(error), scope)(scope, receive, answer.send)
        finally:
            _log_request(scope, answer.status or _GONE_STATUS, started_at_ns, request_id)

    def _bounded(self, receive: Receive) -> Receive:
        received_bytes = 0

        async def bounded() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            # Counted, not believed: a chunked body announces no size at all.
            if received_bytes > self._body_limit_bytes:
                raise BodyTooLarge
            return message

        return bounded


class _Answer:
    """Adds the common headers to an answer and remembers its status, 0 until it has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = with_common_headers(message["headers"], self._request_id)
        await self._send(message)


def allowed_methods(routes: Iterable[object], path: str) -> str:
    """Return the `Allow` header of a path: the methods of every route that takes it (RFC 9110, section 10.2.1)."""
    methods: set[str] = set()
    for route in iter_route_contexts(routes):  # pyright: ignore[reportArgumentType] - routes of any kind
        pattern = cast("re.Pattern[str] | None", getattr(route, "path_regex", None))
        if pattern is not None and pattern.match(path):
            methods |= route.methods or set()
    return ", ".join(sorted(methods))


def _route_template(scope: Scope) -> str:
    """Return the path as it was declared: the path itself holds ids, and its query may hold anything."""
    template: Callable[[], str] | str = getattr(scope.get("route"), "path", "")
    return template if isinstance(template, str) else ""


def _log_request(scope: Scope, status: int, started_at_ns: int, request_id: str) -> None:
    if str(scope["path"]).startswith(_QUIET_PREFIX):
        return
    log.info(
        "request",
        method=scope["method"],
        route=_route_template(scope) or "unknown",
        status=status,
        duration_ms=round((time.monotonic_ns() - started_at_ns) / 1e6, 1),
        request_id=request_id,
    )


def _log_failure(error: Exception, scope: Scope, request_id: str) -> None:
    log.error(
        "request_failed",
        method=scope["method"],
        route=_route_template(scope) or "unknown",
        request_id=request_id,
        sqlstate=sqlstate_of(error),
        constraint=constraint_of(error),
        **trace_of(error),
    )
