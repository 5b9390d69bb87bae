"""Says who calls, from a signed token alone: no database, no Redis, no network.

Access tokens are JSON Web Tokens (RFC 7519) signed with HMAC-SHA256, and the algorithm is ours to name, never the
token's (RFC 8725, section 3.1). Their times are judged by the instant that the caller of this module brings along:
the one clock decides, not the machine's.
"""

import secrets
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, NamedTuple, cast
from uuid import UUID

import jwt
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from jwt.types import Options

from app.core.clock import Clock
from app.core.problems import NotAuthenticated, TokenExpired
from app.core.settings import Settings

ISSUER: Final = "clocktower"
TOKEN_TYPE: Final = "Bearer"  # noqa: S105 - the name of a scheme (RFC 6750), not a secret

_ALGORITHM: Final = "HS256"
_ACCESS: Final = "access"
_JTI_BYTES: Final = 12
# Ours have some 260 characters. The bound also keeps a forged header too short to nest JSON deeply.
_TOKEN_CHARACTERS_MAX: Final = 512
# Two workers' clocks differ by up to half a round trip to Redis, which is bounded by its time-out; a token that one
# has just issued must not look premature to the other. Expiry gets no such grace.
_ISSUED_AHEAD_MS_MAX: Final = 5_000
# A parent sends several requests with the same token; checking its signature costs some 40 µs, finding it here
# under one. At some 700 bytes an entry this is about 6 MB a process when full.
_VERIFIED_TOKENS_KEPT: Final = 8_192

_DECODING: Final[Options] = {
    "verify_signature": True,
    # Times are judged below, by the clock that decides everywhere else.
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "verify_aud": False,
    "require": ["iss", "sub", "iat", "exp", "jti", "typ"],
}


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Whoever holds a valid access token."""

    account_id: UUID


class _Claims(NamedTuple):
    account_id: UUID
    issued_at_ms: int
    expires_at_ms: int


def sign_access_token(account_id: UUID, *, key: bytes, now_ms: int, lifetime_seconds: int) -> str:
    """Return a token that speaks for the account until `now_ms` plus its lifetime. It cannot be taken back."""
    issued_at_seconds = now_ms // 1000
    return jwt.encode(
        {
            "iss": ISSUER,
            "sub": str(account_id),
            "iat": issued_at_seconds,
            "exp": issued_at_seconds + lifetime_seconds,
            "jti": secrets.token_urlsafe(_JTI_BYTES),
            "typ": _ACCESS,
        },
        key,
        algorithm=_ALGORITHM,
    )


def verify_access_token(token: str, *, key: bytes, now_ms: int) -> UUID:
    """Return the account that the token speaks for at `now_ms` (Unix milliseconds).

    Raises `TokenExpired` for one that was good once, and `NotAuthenticated` for everything else: malformed, forged,
    unsigned, signed by another algorithm or key, of another issuer or type, or issued in the future.
    """
    if len(token) > _TOKEN_CHARACTERS_MAX:
        raise NotAuthenticated
    claims = _verified(token, key)
    if claims.issued_at_ms > now_ms + _ISSUED_AHEAD_MS_MAX:
        raise NotAuthenticated
    if now_ms >= claims.expires_at_ms:
        raise TokenExpired
    return claims.account_id


# Only what verified is kept (an exception is not), so a flood of forgeries displaces nobody.
@lru_cache(maxsize=_VERIFIED_TOKENS_KEPT)
def _verified(token: str, key: bytes) -> _Claims:
    try:
        claims = cast(
            "dict[str, object]",
            jwt.decode(token, key, algorithms=[_ALGORITHM], issuer=ISSUER, options=_DECODING),
        )
    except (jwt.PyJWTError, ValueError):
        # From None: the cause would carry the token into a traceback.
        raise NotAuthenticated from None
    issued_at, expires_at, subject = claims["iat"], claims["exp"], claims["sub"]
    if claims["typ"] != _ACCESS or type(issued_at) is not int or type(expires_at) is not int:
        raise NotAuthenticated
    try:
        account_id = UUID(str(subject))
    except ValueError:
        raise NotAuthenticated from None
    return _Claims(account_id, issued_at * 1000, expires_at * 1000)


_bearer = HTTPBearer(
    scheme_name="Bearer",
    bearerFormat="JWT",
    description="The `access_token` of a sign-in.",
    auto_error=False,
)


async def _caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> SignedIn:
    if credentials is None:
        raise NotAuthenticated
    settings: Settings = request.app.state.settings
    clock: Clock = request.app.state.clock
    key = settings.token_key.get_secret_value().encode()
    return SignedIn(verify_access_token(credentials.credentials, key=key, now_ms=clock.now_ms()))


# The signed-in account of this request; 401 where there is none.
Caller = Annotated[SignedIn, Depends(_caller)]


async def _caller_or_visitor(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> SignedIn | None:
    return None if credentials is None else await _caller(request, credentials)


# The signed-in account where a token was sent (a bad one is refused all the same), else nobody: for public reads
# that show more to some.
CallerOrVisitor = Annotated[SignedIn | None, Depends(_caller_or_visitor)]
