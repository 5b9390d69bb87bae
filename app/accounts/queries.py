"""Statements of sign-in and roles: one function, one statement, one round trip."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import CursorResult, Uuid, column, delete, literal, select, table, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Account, GuardianInvitation, RefreshToken, RoleGrant
from app.accounts.policy import RefreshFacts, Role, RoleGrantView, ScopeKind

# Tables of the feature above this one, by name only: accounts may not import it. Nothing is read from them but
# whether an id exists; a lookup here costs no further round trip, a callable handed down by `main` would.
_SCOPE_TABLES: Final = {
    ScopeKind.STATION: table("station", column("id", Uuid)),
    ScopeKind.UNIT: table("unit", column("id", Uuid)),
}


@dataclass(frozen=True, slots=True)
class NewRefreshToken:
    """A refresh token about to be stored; only its SHA-256 is."""

    id: UUID
    family_id: UUID
    token_hash: bytes
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SignedInRow:
    """The account behind an open id, and which roles it holds, in whatever scope."""

    account_id: UUID
    blocked: bool
    roles: Sequence[str]


# A blocked account gets no token. The update on conflict is what makes the existing row come back; it touches no index.
_SIGN_IN: Final = text("""
    WITH known AS (
        INSERT INTO account (id, openid, unionid, created_at)
        VALUES (:account_id, :openid, CAST(:unionid AS varchar), :now)
        ON CONFLICT (openid) DO UPDATE SET unionid = coalesce(excluded.unionid, account.unionid)
        RETURNING id, blocked_at
    ), token AS (
        INSERT INTO refresh_token (id, family_id, account_id, token_hash, issued_at, expires_at)
        SELECT :token_id, :family_id, known.id, :token_hash, :now, :expires_at FROM known WHERE blocked_at IS NULL
    )
    SELECT known.id, known.blocked_at IS NOT NULL AS blocked,
           ARRAY(SELECT role FROM role_grant WHERE account_id = known.id AND revoked_at IS NULL) AS roles
    FROM known
""")


async def sign_in(
    db: AsyncSession, *, account_id: UUID, openid: str, unionid: str | None, token: NewRefreshToken
) -> SignedInRow:
    """Find the account of this open id, or make it under `account_id`; store its token; read its roles."""
    result = await db.execute(
        _SIGN_IN,
        {
            "account_id": account_id,
            "openid": openid,
            "unionid": unionid,
            "now": token.issued_at,
            "token_id": token.id,
            "family_id": token.family_id,
            "token_hash": token.token_hash,
            "expires_at": token.expires_at,
        },
    )
    row = result.one()
    return SignedInRow(row.id, row.blocked, row.roles)


async def lock_account_of_token(db: AsyncSession, *, token_hash: bytes) -> bool:
    """Lock the account that a refresh token belongs to until the transaction ends; False if there is no such token.

    All changes of an account's tokens queue up here, so that revoking a family cannot miss a token that is being
    added to it. What the token has become comes as a statement of its own afterwards: one that waited for the lock
    would still tell what it saw before.
    """
    owner = select(RefreshToken.account_id).where(RefreshToken.token_hash == token_hash).scalar_subquery()
    statement = select(literal(1)).where(Account.id == owner).with_for_update(key_share=True, of=Account)
    return (await db.execute(statement)).first() is not None


_REFRESH_FACTS: Final = text("""
    SELECT token.family_id, token.account_id, account.blocked_at IS NOT NULL AS account_blocked, token.expires_at,
           token.used_at, token.revoked_at IS NOT NULL AS revoked,
           (SELECT count(*) FROM refresh_token AS later
            WHERE later.family_id = token.family_id AND later.issued_at >= token.used_at) AS siblings
    FROM refresh_token AS token JOIN account ON account.id = token.account_id
    WHERE token.token_hash = :token_hash
""")


async def refresh_facts(db: AsyncSession, *, token_hash: bytes) -> RefreshFacts | None:
    """Return a refresh token with what decides about it. The caller holds the lock of `lock_account_of_token`."""
    row = (await db.execute(_REFRESH_FACTS, {"token_hash": token_hash})).one_or_none()
    if row is None:
        return None
    return RefreshFacts(
        family_id=row.family_id,
        account_id=row.account_id,
        account_blocked=row.account_blocked,
        expires_at=row.expires_at,
        used_at=row.used_at,
        revoked=row.revoked,
        siblings=row.siblings,
    )


# A successor never looks older than the first use of what it follows, whichever of two requests arrived first: it is
# by this that `siblings` counts.
_ROTATE: Final = text("""
    WITH used AS (
        UPDATE refresh_token SET used_at = coalesce(used_at, :now) WHERE token_hash = :used_hash
        RETURNING account_id, family_id, used_at
    ), next AS (
        INSERT INTO refresh_token (id, family_id, account_id, token_hash, issued_at, expires_at)
        SELECT :token_id, family_id, account_id, :token_hash, greatest(used_at, :now), :expires_at FROM used
    )
    SELECT ARRAY(
        SELECT role FROM role_grant JOIN used USING (account_id) WHERE revoked_at IS NULL
    ) AS roles
""")


async def rotate(db: AsyncSession, *, used_hash: bytes, token: NewRefreshToken) -> Sequence[str]:
    """Mark a token as used, unless it was, add its successor to the family; return the roles of the account."""
    result = await db.execute(
        _ROTATE,
        {
            "used_hash": used_hash,
            "now": token.issued_at,
            "token_id": token.id,
            "token_hash": token.token_hash,
            "expires_at": token.expires_at,
        },
    )
    roles: Sequence[str] = result.scalar_one()
    return roles


async def revoke_family(db: AsyncSession, *, family_id: UUID, now: datetime) -> None:
    """Revoke every token of a family. The caller holds the lock of `lock_account_of_token`."""
    await db.execute(
        update(RefreshToken)
        .where(RefreshToken.family_id == family_id, RefreshToken.revoked_at.is_(None))
        .values(revoked_at=now)
    )


# Written out, not built: every registration sends it, and building it costs more than it takes.
_LOCK_ACCOUNT: Final = text("SELECT blocked_at IS NOT NULL FROM account WHERE id = :account_id FOR NO KEY UPDATE")


async def lock_account(db: AsyncSession, *, account_id: UUID) -> bool | None:
    """Lock an account until the transaction ends; return whether it is blocked, None if there is none.

    What counts an account's people comes as a statement of its own afterwards: one that waited for the lock would
    still count what it saw before.
    """
    blocked: bool | None = (await db.execute(_LOCK_ACCOUNT, {"account_id": account_id})).scalar_one_or_none()
    return blocked


async def ensure_account(db: AsyncSession, *, account_id: UUID, openid: str, now: datetime) -> UUID:
    """Return the account of an open id, made under `account_id` if there was none."""
    statement = (
        insert(Account)
        .values(id=account_id, openid=openid, created_at=now)
        .on_conflict_do_update(index_elements=[Account.openid], set_={"openid": openid})
        .returning(Account.id)
    )
    return (await db.execute(statement)).scalar_one()


async def account_exists(db: AsyncSession, *, account_id: UUID) -> bool:
    """Tell whether there is such an account."""
    return (await db.execute(select(literal(1)).where(Account.id == account_id))).first() is not None


async def scope_exists(db: AsyncSession, *, kind: ScopeKind, scope_id: UUID) -> bool:
    """Tell whether there is such a station or unit. Groups have no table: any id names one."""
    if kind is ScopeKind.GROUP:
        return True
    scopes = _SCOPE_TABLES[kind]
    return (await db.execute(select(literal(1)).select_from(scopes).where(scopes.c.id == scope_id))).first() is not None


async def standing_grants(db: AsyncSession, *, account_id: UUID) -> list[RoleGrantView]:
    """Return the grants of an account that have not been revoked, oldest first; none while it is blocked."""
    statement = (
        select(RoleGrant)
        .join(Account, Account.id == RoleGrant.account_id)
        .where(RoleGrant.account_id == account_id, RoleGrant.revoked_at.is_(None), Account.blocked_at.is_(None))
        .order_by(RoleGrant.id)
    )
    return [_view(grant) for grant in (await db.execute(statement)).scalars()]


async def add_grant(
    db: AsyncSession,
    *,
    grant_id: UUID,
    account_id: UUID,
    role: Role,
    scope_kind: ScopeKind | None,
    scope_id: UUID | None,
    granted_by: UUID | None,
    now: datetime,
) -> RoleGrantView:
    """Add a grant and return it, or the same grant that stands already.

    Raises `IntegrityError` of `fk_role_grant_account_id` when there is no such account.
    """
    statement = (
        insert(RoleGrant)
        .values(
            id=grant_id,
            account_id=account_id,
            role=role.value,
            scope_kind=scope_kind.value if scope_kind else None,
            scope_id=scope_id,
            granted_by=granted_by,
            granted_at=now,
        )
        .on_conflict_do_update(
            index_elements=[RoleGrant.account_id, RoleGrant.role, RoleGrant.scope_kind, RoleGrant.scope_id],
            index_where=RoleGrant.revoked_at.is_(None),
            set_={"role": role.value},
        )
        .returning(RoleGrant)
    )
    return _view((await db.execute(statement)).scalar_one())


async def revoke_grant(db: AsyncSession, *, grant_id: UUID, now: datetime) -> UUID | None:
    """Revoke a standing grant; return its account, None if there is no such grant or it was revoked before."""
    statement = (
        update(RoleGrant)
        .where(RoleGrant.id == grant_id, RoleGrant.revoked_at.is_(None))
        .values(revoked_at=now)
        .returning(RoleGrant.account_id)
    )
    return (await db.execute(statement)).scalar_one_or_none()


async def forget_refresh_tokens(db: AsyncSession, *, expired_before: datetime, limit: int) -> int:
    """Delete up to `limit` tokens that expired before an instant; return how many."""
    oldest = select(RefreshToken.id).where(RefreshToken.expires_at < expired_before).limit(limit)
    return _rows(await db.execute(delete(RefreshToken).where(RefreshToken.id.in_(oldest))))


async def forget_invitations(db: AsyncSession, *, expired_before: datetime, limit: int) -> int:
    """Delete up to `limit` invitations that expired before an instant; return how many."""
    oldest = select(GuardianInvitation.id).where(GuardianInvitation.expires_at < expired_before).limit(limit)
    return _rows(await db.execute(delete(GuardianInvitation).where(GuardianInvitation.id.in_(oldest))))


def _rows(result: object) -> int:
    return result.rowcount if isinstance(result, CursorResult) else 0


def _view(grant: RoleGrant) -> RoleGrantView:
    return RoleGrantView(
        id=grant.id,
        account_id=grant.account_id,
        role=Role(grant.role),
        scope_kind=ScopeKind(grant.scope_kind) if grant.scope_kind else None,
        scope_id=grant.scope_id,
        granted_at=grant.granted_at,
    )
