"""Bodies of sign-in and roles."""

from typing import Annotated, Self
from uuid import UUID

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.accounts.policy import Role, RoleGrantView, ScopeKind
from app.accounts.service import Tokens
from app.core.auth import TOKEN_TYPE
from app.core.schemas import RequestModel, ResponseModel, TownInstant

_VISIBLE_ASCII = r"^[\x21-\x7e]+$"
# WeChat's codes have 32 characters, its open ids 28; our refresh tokens 43.
Opaque = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_VISIBLE_ASCII)]


class SignIn(RequestModel):
    """A code from `wx.login`, which works once."""

    code: Annotated[Opaque, Field(examples=["demo-parent1"])]


class RefreshTokenBody(RequestModel):
    """The newest refresh token of a sign-in."""

    refresh_token: Annotated[Opaque, Field(examples=["3q2-7wAAcm9nZXItYW5kLW91dC1oZXJlLWZvci15b3U"])]


class AccountBrief(ResponseModel):
    """Who has signed in."""

    id: UUID
    roles: Annotated[list[str], Field(description="Each role once, scopes left out.", examples=[["resident"]])]


class TokenPair(ResponseModel):
    """A token for requests, and one to get the next pair with."""

    access_token: str
    token_type: Annotated[str, Field(examples=[TOKEN_TYPE])] = TOKEN_TYPE
    expires_in: Annotated[int, Field(description="Seconds that the access token is good for.", examples=[7200])]
    refresh_token: str
    account: AccountBrief

    @classmethod
    def of(cls, tokens: Tokens) -> Self:
        """Return the tokens as they are told."""
        return cls(
            access_token=tokens.access_token,
            expires_in=tokens.access_seconds,
            refresh_token=tokens.refresh_token,
            account=AccountBrief(id=tokens.account_id, roles=tokens.roles),
        )


class Scope(RequestModel):
    """Where a role holds."""

    kind: ScopeKind
    id: UUID


class RoleGranting(RequestModel):
    """Who gets which role, and where; `scope` null means everywhere."""

    account_id: UUID | None = None
    openid: Annotated[
        Opaque | None, Field(description="Instead of account_id; the person need not have signed in before.")
    ] = None
    role: Role
    scope: Scope | None = None

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"openid": "demo-operator2", "role": "operator", "scope": None}]}
    )

    @model_validator(mode="after")
    def _names_one_account(self) -> Self:
        if (self.account_id is None) == (self.openid is None):
            raise PydanticCustomError("one_account", "Give account_id or openid, and not both")
        return self


class HeldRole(ResponseModel):
    """A role of the signed-in account; a scope of null means everywhere."""

    role: Role
    scope_kind: ScopeKind | None
    scope_id: UUID | None


class Me(ResponseModel):
    """The signed-in account."""

    id: UUID
    roles: list[HeldRole]

    @classmethod
    def of(cls, account_id: UUID, grants: list[RoleGrantView]) -> Self:
        """Return the account with the role that everybody has and those that were granted."""
        resident = HeldRole(role=Role.RESIDENT, scope_kind=None, scope_id=None)
        held = [HeldRole(role=grant.role, scope_kind=grant.scope_kind, scope_id=grant.scope_id) for grant in grants]
        return cls(id=account_id, roles=[resident, *held])


class RoleGrantShown(ResponseModel):
    """A standing grant; its id is what revokes it."""

    id: UUID
    account_id: UUID
    role: Role
    scope_kind: ScopeKind | None
    scope_id: UUID | None
    granted_at: TownInstant


class RoleGrantPage(ResponseModel):
    """All standing grants of an account. They are few: there is never a next page."""

    items: list[RoleGrantShown]
    next: None = None
