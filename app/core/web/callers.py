"""Says whose request it is before any route has been chosen: an account by its token, or an address."""

from typing import Final
from uuid import UUID

from starlette.datastructures import Headers
from starlette.types import Scope

from app.core.auth import verify_access_token
from app.core.problems import Problem

_BEARER: Final = "bearer"


def bearer_token(scope: Scope) -> str | None:
    """Return the access token of the request as it was sent, unverified; None without one."""
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == _BEARER and token else None


def account_of(scope: Scope, *, key: bytes, now_ms: int) -> UUID | None:
    """Return the account that a valid token speaks for; None without one, whatever the reason."""
    token = bearer_token(scope)
    if token is None:
        return None
    try:
        return verify_access_token(token, key=key, now_ms=now_ms)
    except Problem:
        return None


def address_of(scope: Scope) -> str:
    """Return the address that the server saw, or the one a trusted proxy named (uvicorn's `proxy_headers`)."""
    client: tuple[str, int] | None = scope.get("client")
    return client[0] if client else "local"
