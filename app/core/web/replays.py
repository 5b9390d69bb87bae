"""Lets every signed-in write be sent again: the same `Idempotency-Key` gets the same answer, and nothing twice.

How it fits with `Tx`: FastAPI keeps one session a request, so the dependency below and the endpoint share a
transaction. It first writes an empty record under (account, key). A second request with the same key waits on that
row until the first commits or rolls back: PostgreSQL's unique index does the waiting. When the endpoint has answered
2xx, the record is filled; record and write commit together, before the answer leaves. Any refusal rolls both back, so
a key is only spent on a success. What is kept is sealed: an answer may hold a child's nickname.

IETF draft-ietf-httpapi-idempotency-key-header.
"""

from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Header, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import idempotency
from app.core.clock import Clock
from app.core.idempotency import Kept
from app.core.problems import FieldError, IdempotencyMismatch, ValidationFailed
from app.core.sealing import Sealer, sealer_for
from app.core.settings import Settings
from app.core.web.callers import account_of
from app.core.web.transactions import Tx

KEY_HEADER: Final = "Idempotency-Key"
REPLAYED_HEADER: Final = "Idempotency-Replayed"
KEY_CHARACTERS_MAX: Final = 255


class Replayed(Exception):  # noqa: N818 - not an error: the way out of a dependency with an answer
    """The answer is known already; the endpoint must not run."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A write under a key, whose record stands empty in the same transaction."""

    db: AsyncSession
    sealer: Sealer
    account_id: UUID
    key: str


async def _idempotent(
    request: Request,
    db: Tx,
    key: Annotated[
        str | None,
        Header(
            alias=KEY_HEADER,
            description="Makes this write safe to send again: for 24 hours the same key with the same request gets "
            "the same answer (with `Idempotency-Replayed: true`). 1 to 255 visible ASCII characters; a UUID is fine.",
            examples=["0197a3c2-5b1e-7c40-9a52-0d6f1f0b7f11"],
        ),
    ] = None,
) -> None:
    if key is None:
        return
    settings: Settings = request.app.state.settings
    clock: Clock = request.app.state.clock
    token_key = settings.token_key.get_secret_value().encode()
    account_id = account_of(request.scope, key=token_key, now_ms=clock.now_ms())
    if account_id is None:
        # Nobody's key: the endpoint either needs no sign-in, and keeps no keys, or refuses in a moment.
        return
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX or not key.isascii() or not key.isprintable() or " " in key:
        raise ValidationFailed(
            "Idempotency-Key must be 1 to 255 visible ASCII characters.",
            "Idempotency-Key 须为 1 至 255 个可见 ASCII 字符。",
            errors=[FieldError(KEY_HEADER, "bad_format")],
        )
    kept = await idempotency.begin(
        db,
        account_id=account_id,
        key=key,
        request_hash=await _request_hash(request),
        now=clock.now(),
        hours=settings.idempotency_hours,
    )
    sealer = sealer_for(settings)
    if kept is None:
        request.state.idempotency_attempt = _Attempt(db, sealer, account_id, key)
        return
    raise Replayed(await _again(request, kept, sealer, idempotency.row_id(account_id, key)))


# Declared on every write by `ApiRoute`.
IDEMPOTENT: Final = Depends(_idempotent)


async def keep_answer(request: Request, response: Response) -> None:
    """Fill the record with a 2xx answer, or take it back for any other; in the request's transaction."""
    attempt: _Attempt | None = getattr(request.state, "idempotency_attempt", None)
    if attempt is None:
        return
    if HTTPStatus.OK <= response.status_code < HTTPStatus.MULTIPLE_CHOICES:
        sealed = attempt.sealer.seal(
            bytes(response.body).decode(), row_id=idempotency.row_id(attempt.account_id, attempt.key)
        )
        await idempotency.keep(
            attempt.db, account_id=attempt.account_id, key=attempt.key, status=response.status_code, body=sealed
        )
    else:
        await idempotency.forget(attempt.db, account_id=attempt.account_id, key=attempt.key)


async def _again(request: Request, kept: Kept, sealer: Sealer, row_id: UUID) -> Response:
    if kept.request_hash != await _request_hash(request):
        raise IdempotencyMismatch
    body = sealer.open(kept.body, row_id=row_id).encode()
    return Response(
        body, kept.status, headers={REPLAYED_HEADER: "true"}, media_type="application/json" if body else None
    )


async def _request_hash(request: Request) -> bytes:
    digest = sha256()
    for part in (request.method, request.url.path, request.url.query):
        digest.update(part.encode(errors="surrogateescape") + b"\x00")
    digest.update(await request.body())
    return digest.digest()
