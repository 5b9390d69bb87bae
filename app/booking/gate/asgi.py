"""Carries the gate's requests over ASGI, in front of the application. Everything else passes through untouched."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from app.booking.gate.desk import Desk, Request
from app.core.problems import BodyTooLarge
from app.core.web.documents import Answer, as_asgi, problem_answer
from app.core.web.headers import (
    REQUEST_ID_NAME,
    announced_bytes,
    headers_by_name,
    request_id_for,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# What comes with these means nothing (RFC 9110, section 9.3.1), so nobody waits for it.
_BODILESS_METHODS: Final = frozenset({"GET", "HEAD"})


class _Call(Request):
    """A request that came by ASGI."""

    __slots__ = ("_end",)
    _end: asyncio.Task[None]

    async def answered_by(self, desk: Desk, receive: Receive) -> Answer:
        """Return the desk's answer, while listening whether whoever asked hangs up."""
        self._end = asyncio.create_task(_disconnected(receive))
        try:
            return await desk.answer(self)
        finally:
            self._end.cancel()

    def has_hung_up(self) -> bool:
        """Tell whether the connection is gone."""
        return self._end.done()


class GateInFront:
    """An ASGI application: the gate in front, another application behind it.

    `desk` gives the desk once the application has started; until then everything passes through.
    """

    def __init__(self, behind: ASGIApp, desk: Callable[[], Desk | None], *, body_limit_bytes: int) -> None:
        self.behind = behind
        self._desk = desk
        self._body_limit_bytes = body_limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.behind(scope, receive, send)
            return
        desk = self._desk()
        method, path = scope["method"], scope["path"]
        headers = headers_by_name(scope["headers"])
        if desk is None or not desk.is_mine(method, path, headers.get(b"authorization", b"")):
            await self.behind(scope, receive, send)
            return
        # Known beforehand, so that a phone which waits for a "100 Continue" hears of it instead.
        is_too_large = announced_bytes(headers.get(b"content-length")) > self._body_limit_bytes
        body: bytes | None = b""
        if not (is_too_large or method in _BODILESS_METHODS):
            body = await _read_body(receive, self._body_limit_bytes)
        if body is None:
            return
        request_id = request_id_for(headers.get(REQUEST_ID_NAME))
        request = _Call(method, path, headers, body, request_id)
        if is_too_large or len(body) > self._body_limit_bytes:
            answer = problem_answer(
                BodyTooLarge(),
                accept_language=request.accept_language,
                request_id=request_id,
            )
        else:
            answer = await request.answered_by(desk, receive)
        for message in as_asgi(answer, request_id, is_head=method == "HEAD"):
            await send(message)


async def _read_body(receive: Receive, limit_bytes: int) -> bytes | None:
    """Return the body, or something longer than the limit if it is longer, or None if the phone hung up."""
    message: Message = await receive()
    if message["type"] != "http.request":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    parts, length = [body], len(body)
    while message.get("more_body", False) and length <= limit_bytes:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        length += len(parts[-1])
    return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    """Wait for the end of the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
