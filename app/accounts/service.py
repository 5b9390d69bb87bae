"""Sign-in, refresh and roles: the door of this feature for the features above it."""

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final, assert_never
from uuid import UUID

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import queries
from app.accounts.errors import (
    AccountBlocked,
    RefreshTokenInvalid,
    RefreshTokenReused,
    RoleScopeInvalid,
    UnknownScope,
    for_constraint,
)
from app.accounts.family.service import PersonFacts, people_for_pass
from app.accounts.policy import (
    SCOPES,
    RefreshFacts,
    RefreshVerdict,
    Role,
    RoleGrantView,
    ScopeKind,
    holds,
    judge_refresh,
    role_names,
)
from app.accounts.queries import NewRefreshToken
from app.core.auth import sign_access_token
from app.core.clock import to_ms
from app.core.ids import new_id
from app.core.problems import Forbidden, NotFound
from app.core.settings import Settings

__all__ = [
    "PersonFacts",
    "Tokens",
    "grant_role",
    "grant_role_by_openid",
    "people_for_pass",
    "refresh",
    "require_role",
    "require_role_at",
    "revoke_role",
    "roles_of",
    "roles_of_account",
    "sign_in",
    "sign_out",
]

log = structlog.stdlib.get_logger(__name__)

_REFRESH_TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a sign-in gives: a short-lived token for requests and one that fetches the next pair."""

    account_id: UUID
    roles: list[str]
    access_token: str
    access_seconds: int
    refresh_token: str


async def sign_in(db: AsyncSession, *, openid: str, unionid: str | None, now: datetime, settings: Settings) -> Tokens:
    """Sign in whom WeChat has identified, registering the account at its first time. One statement.

    Raises `AccountBlocked`.
    """
    secret, token = _new_refresh_token(family_id=None, now=now, settings=settings)
    row = await queries.sign_in(db, account_id=new_id(), openid=openid, unionid=unionid, token=token)
    if row.blocked:
        raise AccountBlocked
    return _tokens(row.account_id, row.roles, secret, now=now, settings=settings)


async def refresh(
    db: AsyncSession, *, refresh_token: str, now: datetime, settings: Settings
) -> Tokens | RefreshTokenInvalid | RefreshTokenReused | AccountBlocked:
    """Exchange a refresh token for the next pair.

    A refusal is returned, not raised: what it has written, the end of a stolen family, must be committed before
    the caller raises it. docs/decisions/refresh-token-grace.md says when a second use is forgiven.
    """
    token_hash = _hash(refresh_token)
    facts = await _locked_facts(db, token_hash)
    if facts is None:
        return RefreshTokenInvalid()
    verdict = judge_refresh(facts, now=now, grace=timedelta(seconds=settings.refresh_grace_seconds))
    match verdict:
        case RefreshVerdict.INVALID:
            return RefreshTokenInvalid()
        case RefreshVerdict.BLOCKED:
            return AccountBlocked()
        case RefreshVerdict.REUSED:
            await queries.revoke_family(db, family_id=facts.family_id, now=now)
            log.warning("refresh_token_reused", account=str(facts.account_id), family=str(facts.family_id))
            return RefreshTokenReused()
        case RefreshVerdict.ROTATE:
            secret, token = _new_refresh_token(family_id=facts.family_id, now=now, settings=settings)
            roles = await queries.rotate(db, used_hash=token_hash, token=token)
            return _tokens(facts.account_id, roles, secret, now=now, settings=settings)
        case _:
            assert_never(verdict)


async def sign_out(db: AsyncSession, *, refresh_token: str, now: datetime) -> None:
    """Revoke every token of the sign-in that this one descends from. An unknown token is signed out already."""
    facts = await _locked_facts(db, _hash(refresh_token))
    if facts is not None:
        await queries.revoke_family(db, family_id=facts.family_id, now=now)


async def roles_of(db: AsyncSession, account_id: UUID) -> list[RoleGrantView]:
    """Return the standing grants of an account; none while it is blocked. That it is a resident goes without saying."""
    return await queries.standing_grants(db, account_id=account_id)


async def require_role(
    db: AsyncSession,
    account_id: UUID,
    roles: Role | Collection[Role],
    *,
    station_id: UUID | None = None,
    any_scope: bool = False,
) -> None:
    """Raise `Forbidden` unless the account holds one of the roles where it is asked for; see `policy.holds`.

    Without `station_id` a role that is limited to a station does not count, unless `any_scope` is set.
    """
    grants = await roles_of(db, account_id)
    if not holds(grants, _as_collection(roles), station_id=station_id, any_scope=any_scope):
        raise Forbidden


async def require_role_at(
    db: AsyncSession, account_id: UUID, roles: Role | Collection[Role], *, station_ids: Collection[UUID]
) -> None:
    """Raise `Forbidden` unless the account holds one of the roles at every one of the stations, and there is one."""
    grants = await roles_of(db, account_id)
    wanted = _as_collection(roles)
    if not station_ids or not all(holds(grants, wanted, station_id=station_id) for station_id in station_ids):
        raise Forbidden


async def roles_of_account(db: AsyncSession, account_id: UUID) -> list[RoleGrantView]:
    """Return the standing grants of somebody else's account; raise `NotFound` when there is no such account."""
    grants = await queries.standing_grants(db, account_id=account_id)
    if not grants and not await queries.account_exists(db, account_id=account_id):
        raise NotFound
    return grants


async def grant_role(
    db: AsyncSession,
    *,
    account_id: UUID,
    role: Role,
    scope_kind: ScopeKind | None,
    scope_id: UUID | None,
    granted_by: UUID | None,
    now: datetime,
) -> RoleGrantView:
    """Grant a role, once: granting what stands already gives the same grant.

    Raises `RoleScopeInvalid`, `UnknownScope` and `UnknownAccount`.
    """
    if scope_kind not in SCOPES[role]:
        allowed = [kind.value if kind else None for kind in SCOPES[role]]
        raise RoleScopeInvalid(extra={"allowed": allowed})
    if scope_kind is not None:
        if scope_id is None:
            raise RoleScopeInvalid
        if not await queries.scope_exists(db, kind=scope_kind, scope_id=scope_id):
            raise UnknownScope
    try:
        grant = await queries.add_grant(
            db,
            grant_id=new_id(),
            account_id=account_id,
            role=role,
            scope_kind=scope_kind,
            scope_id=scope_id if scope_kind else None,
            granted_by=granted_by,
            now=now,
        )
    except IntegrityError as error:
        raise for_constraint(error) from None
    log.info("role_granted", account=str(account_id), role=role.value, by=str(granted_by) if granted_by else None)
    return grant


async def grant_role_by_openid(
    db: AsyncSession,
    *,
    openid: str,
    role: Role,
    scope_kind: ScopeKind | None,
    scope_id: UUID | None,
    now: datetime,
    granted_by: UUID | None = None,
) -> RoleGrantView:
    """Grant a role to whoever signs in with this open id, before or after the first sign-in.

    Raises `RoleScopeInvalid` and `UnknownScope`.
    """
    account_id = await queries.ensure_account(db, account_id=new_id(), openid=openid, now=now)
    return await grant_role(
        db,
        account_id=account_id,
        role=role,
        scope_kind=scope_kind,
        scope_id=scope_id,
        granted_by=granted_by,
        now=now,
    )


async def revoke_role(db: AsyncSession, *, grant_id: UUID, revoked_by: UUID, now: datetime) -> None:
    """Revoke a grant. Raises `NotFound` when none of this id stands."""
    account_id = await queries.revoke_grant(db, grant_id=grant_id, now=now)
    if account_id is None:
        raise NotFound
    log.info("role_revoked", account=str(account_id), grant=str(grant_id), by=str(revoked_by))


async def _locked_facts(db: AsyncSession, token_hash: bytes) -> RefreshFacts | None:
    if not await queries.lock_account_of_token(db, token_hash=token_hash):
        return None
    return await queries.refresh_facts(db, token_hash=token_hash)


def _as_collection(roles: Role | Collection[Role]) -> Collection[Role]:
    # A role is a string, and a string is a collection of letters: none of which is a role.
    return (roles,) if isinstance(roles, Role) else roles


def _hash(refresh_token: str) -> bytes:
    return sha256(refresh_token.encode()).digest()


def _new_refresh_token(*, family_id: UUID | None, now: datetime, settings: Settings) -> tuple[str, NewRefreshToken]:
    """Return a new secret and what is stored of it; without a family it founds its own."""
    secret = secrets.token_urlsafe(_REFRESH_TOKEN_BYTES)
    token_id = new_id()
    return secret, NewRefreshToken(
        id=token_id,
        family_id=family_id or token_id,
        token_hash=_hash(secret),
        issued_at=now,
        expires_at=now + timedelta(days=settings.refresh_token_days),
    )


def _tokens(
    account_id: UUID, roles: Collection[str], refresh_token: str, *, now: datetime, settings: Settings
) -> Tokens:
    key = settings.token_key.get_secret_value().encode()
    lifetime_seconds = settings.access_token_seconds
    return Tokens(
        account_id=account_id,
        roles=role_names(roles),
        access_token=sign_access_token(account_id, key=key, now_ms=to_ms(now), lifetime_seconds=lifetime_seconds),
        access_seconds=lifetime_seconds,
        refresh_token=refresh_token,
    )
