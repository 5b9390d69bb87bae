"""Paths of sign-in, of the signed-in account and of roles."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import service
from app.accounts.errors import (
    AccountBlocked,
    RefreshTokenInvalid,
    RefreshTokenReused,
    RoleScopeInvalid,
    UnknownAccount,
    UnknownScope,
)
from app.accounts.policy import Role
from app.accounts.schemas import Me, RefreshTokenBody, RoleGranting, RoleGrantPage, RoleGrantShown, SignIn, TokenPair
from app.core.auth import Caller
from app.core.context import Configured, Now
from app.core.openapi import problems
from app.core.problems import Forbidden, NotFound
from app.core.web.answers import problem_response
from app.core.web.routing import ApiRouter, keeps_no_answer
from app.core.web.transactions import Read, Tx
from app.wechat.client import WeChatClient
from app.wechat.errors import (
    WeChatAccountBlocked,
    WeChatBusy,
    WeChatCodeInvalid,
    WeChatCodeUsed,
    WeChatFailure,
    WeChatMisconfigured,
    WeChatTimeout,
    WeChatUnreachable,
)

router = ApiRouter()


@router.post(
    "/v1/auth/wechat",
    tags=["auth"],
    summary="Sign in with WeChat",
    responses=problems(
        AccountBlocked,
        WeChatCodeInvalid,
        WeChatCodeUsed,
        WeChatAccountBlocked,
        WeChatBusy,
        WeChatTimeout,
        WeChatUnreachable,
        WeChatMisconfigured,
        WeChatFailure,
    ),
)
@keeps_no_answer
async def sign_in(body: SignIn, request: Request, db: Tx, now: Now, settings: Configured) -> TokenPair:
    """Exchange a code from `wx.login` for tokens. The first sign-in of a WeChat user registers the account.

    With the fake WeChat of the embedded mode, any code `demo-<name>` signs in.
    """
    wechat: WeChatClient = request.app.state.wechat
    # The session takes its connection with its first statement, so none waits for WeChat.
    identity = await wechat.identify(body.code)
    tokens = await service.sign_in(db, openid=identity.openid, unionid=identity.unionid, now=now, settings=settings)
    return TokenPair.of(tokens)


@router.post(
    "/v1/auth/refresh",
    tags=["auth"],
    summary="Exchange a refresh token for the next pair",
    response_model=TokenPair,
    responses=problems(RefreshTokenInvalid, RefreshTokenReused, AccountBlocked),
)
@keeps_no_answer
async def refresh(
    body: RefreshTokenBody, request: Request, db: Tx, now: Now, settings: Configured
) -> TokenPair | Response:
    """Give a new access token and the next refresh token; the one that was sent is used up.

    A reply that was lost may be asked for again with the same token within ten seconds. Later, a used token counts
    as stolen and revokes every token of that sign-in.
    """
    outcome = await service.refresh(db, refresh_token=body.refresh_token, now=now, settings=settings)
    if isinstance(outcome, service.Tokens):
        return TokenPair.of(outcome)
    # Returned, not raised: what was revoked must be committed, and an exception would roll it back.
    return problem_response(outcome, request.scope)


@router.post("/v1/auth/logout", tags=["auth"], summary="Sign out", status_code=204)
@keeps_no_answer
async def sign_out(body: RefreshTokenBody, db: Tx, now: Now) -> None:
    """Revoke every refresh token of this sign-in. An access token lives on until it expires: forget it.

    A token that is unknown or was revoked before is signed out already: 204.
    """
    await service.sign_out(db, refresh_token=body.refresh_token, now=now)


@router.get("/v1/me", tags=["auth"], summary="Who am I?")
async def read_me(caller: Caller, db: Read) -> Me:
    """Return the signed-in account with its roles and where each holds."""
    return Me.of(caller.account_id, await service.roles_of(db, caller.account_id))


async def _operator_reads(caller: Caller, db: Read) -> AsyncSession:
    await service.require_role(db, caller.account_id, Role.OPERATOR)
    return db


async def _operator_writes(caller: Caller, db: Tx) -> AsyncSession:
    await service.require_role(db, caller.account_id, Role.OPERATOR)
    return db


OperatorReads = Annotated[AsyncSession, Depends(_operator_reads)]
OperatorWrites = Annotated[AsyncSession, Depends(_operator_writes)]


@router.post(
    "/v1/roles",
    tags=["roles"],
    summary="Grant a role",
    status_code=201,
    responses=problems(Forbidden, RoleScopeInvalid, UnknownScope, UnknownAccount),
)
async def grant_role(body: RoleGranting, caller: Caller, db: OperatorWrites, now: Now) -> RoleGrantShown:
    """Grant a role, for one station, unit or group, or everywhere. Granting what stands gives the same grant."""
    scope_kind, scope_id = (body.scope.kind, body.scope.id) if body.scope else (None, None)
    if body.account_id is not None:
        grant = await service.grant_role(
            db,
            account_id=body.account_id,
            role=body.role,
            scope_kind=scope_kind,
            scope_id=scope_id,
            granted_by=caller.account_id,
            now=now,
        )
    else:
        grant = await service.grant_role_by_openid(
            db,
            openid=body.openid or "",
            role=body.role,
            scope_kind=scope_kind,
            scope_id=scope_id,
            granted_by=caller.account_id,
            now=now,
        )
    return RoleGrantShown.model_validate(grant)


@router.delete(
    "/v1/roles/{grant_id}",
    tags=["roles"],
    summary="Revoke a role",
    status_code=204,
    responses=problems(Forbidden, NotFound),
)
async def revoke_role(grant_id: UUID, caller: Caller, db: OperatorWrites, now: Now) -> None:
    """Revoke a grant. It counts from the next request on."""
    await service.revoke_role(db, grant_id=grant_id, revoked_by=caller.account_id, now=now)


@router.get(
    "/v1/accounts/{account_id}/roles",
    tags=["roles"],
    summary="Roles of an account",
    responses=problems(Forbidden, NotFound),
)
async def read_roles(account_id: UUID, db: OperatorReads) -> RoleGrantPage:
    """Return every standing grant of an account."""
    grants = await service.roles_of_account(db, account_id)
    return RoleGrantPage(items=[RoleGrantShown.model_validate(grant) for grant in grants])
