"""Refusals of sign-in, family and roles, and which named constraint each answers."""

from typing import Final

from sqlalchemy.exc import IntegrityError

from app.core.problems import Problem
from app.core.web.failures import constraint_of


class AccountBlocked(Problem):
    code = "account_blocked"
    status = 403
    title_en = "This account has been blocked"
    title_zh = "该账号已被停用"
    advice_en = "Show whom to ask; signing in again changes nothing."


class RefreshTokenInvalid(Problem):
    code = "refresh_token_invalid"
    status = 401
    title_en = "The refresh token is unknown, has expired, or was revoked"
    title_zh = "刷新凭证无效、已过期或已注销"
    advice_en = "Sign in again with a new code from wx.login."


class RefreshTokenReused(Problem):
    code = "refresh_token_reused"
    status = 401
    title_en = "The refresh token was used before, so every token of that sign-in is now revoked"
    title_zh = "刷新凭证已被使用过，该次登录的所有凭证已注销"
    advice_en = "Sign in again with a new code from wx.login. Keep only the newest refresh token."


class PeopleLimitReached(Problem):
    code = "people_limit_reached"
    status = 409
    title_en = "This account has registered as many people as it may"
    title_zh = "该账号登记的人数已达上限"
    advice_en = "Show `limit`; let the guardian remove somebody first."


class SelfRegistered(Problem):
    code = "self_registered"
    status = 409
    title_en = "This account has registered its own holder already"
    title_zh = "该账号已登记过本人"
    advice_en = "Register others with relation `child` or `other`."


class BirthMonthInFuture(Problem):
    code = "birth_month_in_future"
    status = 422
    title_en = "The birth month lies in the future"
    title_zh = "出生月份不能晚于当前月份"
    advice_en = "Offer months up to the present one, in the town's zone."


class UnknownUnit(Problem):
    code = "unknown_unit"
    status = 422
    title_en = "There is no such village or residential area"
    title_zh = "没有该村居"
    advice_en = "Choose from GET /v1/units, or send null."


class UnknownConsentVersion(Problem):
    code = "unknown_consent_version"
    status = 422
    title_en = "This version of the consent text is not in force"
    title_zh = "该版本的同意书未生效"
    advice_en = "Show the current text and ask again."


class InvitationLimitReached(Problem):
    code = "invitation_limit_reached"
    status = 409
    title_en = "Too many invitations for this person are open"
    title_zh = "该成员的待接受邀请过多"
    advice_en = "Wait until one is accepted or expires."


class GuardianLimitReached(Problem):
    code = "guardian_limit_reached"
    status = 409
    title_en = "This person has as many guardians as allowed"
    title_zh = "该成员的监护人已达上限"
    advice_en = "Show `limit`; a guardian has to leave first."


class InvitationUsed(Problem):
    code = "invitation_used"
    status = 409
    title_en = "The invitation has been accepted by somebody else"
    title_zh = "该邀请已被他人接受"
    advice_en = "Ask the guardian for a new invitation."


class InvitationExpired(Problem):
    code = "invitation_expired"
    status = 410
    title_en = "The invitation has expired"
    title_zh = "该邀请已过期"
    advice_en = "Ask the guardian for a new invitation."


class AlreadyGuardian(Problem):
    code = "already_guardian"
    status = 409
    title_en = "This account is a guardian of that person already"
    title_zh = "该账号已是该成员的监护人"
    advice_en = "Nothing to do: the person is in GET /v1/me/people."


class RoleScopeInvalid(Problem):
    code = "role_scope_invalid"
    status = 422
    title_en = "This role cannot be granted with that scope"
    title_zh = "该角色不能授予此范围"
    advice_en = "See `allowed` for the scopes of this role; null means everywhere."


class UnknownScope(Problem):
    code = "unknown_scope"
    status = 422
    title_en = "There is no such station or unit"
    title_zh = "没有该站点或村居"
    advice_en = "Choose an id from GET /v1/stations or GET /v1/units."


class UnknownAccount(Problem):
    code = "unknown_account"
    status = 422
    title_en = "There is no such account"
    title_zh = "没有该账号"
    advice_en = "Grant by `openid` to somebody who has never signed in."


# Which refusal a broken constraint stands for. Any other is a defect of ours.
BY_CONSTRAINT: Final[dict[str, type[Problem]]] = {
    "uq_guardianship_one_self": SelfRegistered,
    "fk_role_grant_account_id": UnknownAccount,
}


def for_constraint(error: IntegrityError) -> Problem | IntegrityError:
    """Return the refusal that a broken constraint stands for, or the error itself where nobody expected it."""
    kind = BY_CONSTRAINT.get(constraint_of(error) or "")
    return error if kind is None else kind()
