"""What can go wrong between us and WeChat, and which of WeChat's error codes says so.

Codes: https://developers.weixin.qq.com/miniprogram/dev/OpenApiDoc/user-login/code2Session.html and the global list
https://developers.weixin.qq.com/doc/offiaccount/Getting_Started/Global_Return_Code.html.
"""

from typing import Final

from app.core.problems import Problem, RateLimited, jittered_ms

# "API minute-quota reach limit, must slower, retry next minute": the quota is counted by the minute.
QUOTA_WINDOW_MS: Final = 60_000

# WeChat is usually itself again within a second; a phone that waits this long does not make it worse.
BUSY_RETRY_AFTER_MS: Final = 1_000

SYSTEM_BUSY: Final = -1
TOKEN_REJECTED: Final = frozenset({40001, 40014, 42001})
"""The access token is wrong, malformed or out of date: worth one more call with another one."""


class WeChatFailure(Problem):
    code = "wechat_error"
    status = 502
    title_en = "WeChat gave an answer that we cannot use"
    title_zh = "微信返回了无法处理的结果"
    advice_en = "Call wx.login and try once more; if it stays so, show request_id to support."


class WeChatCodeInvalid(WeChatFailure):
    code = "wechat_code_invalid"
    status = 401
    title_en = "The sign-in code is not valid, or is older than five minutes"
    title_zh = "登录凭证 code 无效或已超过五分钟"
    advice_en = "Call wx.login for a new code and sign in with that."


class WeChatCodeUsed(WeChatFailure):
    code = "wechat_code_used"
    status = 401
    title_en = "The sign-in code was used before; each works once"
    title_zh = "登录凭证 code 已被使用，每个 code 只能使用一次"
    advice_en = "Call wx.login for a new code and sign in with that."


class WeChatAccountBlocked(WeChatFailure):
    code = "wechat_account_blocked"
    status = 403
    title_en = "WeChat keeps this account from signing in"
    title_zh = "微信已限制该账号登录"
    advice_en = "Tell the person to look into WeChat's security centre; trying again changes nothing."


class WeChatMessageRefused(WeChatFailure):
    code = "wechat_message_refused"
    status = 409
    title_en = "The person has not agreed to this message, or has used the agreement up"
    title_zh = "用户未订阅该消息，或订阅次数已用完"
    advice_en = "Ask again with wx.requestSubscribeMessage."


class WeChatBusy(WeChatFailure):
    code = "wechat_busy"
    status = 503
    title_en = "WeChat is busy at this moment"
    title_zh = "微信系统繁忙，请稍后再试"
    retryable = True
    advice_en = "Wait for Retry-After, call wx.login for a new code and sign in with that."


class WeChatUnreachable(WeChatFailure):
    code = "wechat_unreachable"
    status = 502
    title_en = "WeChat cannot be reached at this moment"
    title_zh = "暂时无法连接微信服务器"
    retryable = True
    advice_en = "Wait for Retry-After, call wx.login for a new code and sign in with that."


class WeChatTimeout(WeChatFailure):
    code = "wechat_timeout"
    status = 504
    title_en = "WeChat did not answer in time"
    title_zh = "微信服务器响应超时"
    retryable = True
    # The code may have been used up by the call whose answer never came.
    advice_en = "Call wx.login for a new code and sign in with that; the old code may be used up."


class WeChatMisconfigured(WeChatFailure):
    code = "wechat_misconfigured"
    status = 502
    title_en = "This service is not set up correctly with WeChat"
    title_zh = "本服务的微信配置有误，请联系管理员"
    advice_en = "Nothing a phone can do: the operator must mend the app id, the secret or WeChat's IP list."


_BY_ERRCODE: Final[dict[int, type[WeChatFailure]]] = {
    SYSTEM_BUSY: WeChatBusy,
    40029: WeChatCodeInvalid,
    41008: WeChatCodeInvalid,
    40163: WeChatCodeUsed,
    40226: WeChatAccountBlocked,
    43101: WeChatMessageRefused,
    # The operator's fault: app id, secret (wrong, missing, frozen), caller's address not on WeChat's list, API not
    # granted to this mini-program.
    40013: WeChatMisconfigured,
    40125: WeChatMisconfigured,
    41002: WeChatMisconfigured,
    41004: WeChatMisconfigured,
    40243: WeChatMisconfigured,
    40164: WeChatMisconfigured,
    48001: WeChatMisconfigured,
}
_QUOTA_REACHED: Final = 45011


def problem_for(errcode: int) -> Problem:
    """Return the problem that WeChat's `errcode` stands for; `wechat_error` for a code that is not known here.

    The number goes into the document as `wechat_errcode`. WeChat's `errmsg` does not: it is prose for developers,
    and can hold our own addresses.
    """
    extra = {"wechat_errcode": errcode}
    if errcode == _QUOTA_REACHED:
        return RateLimited(
            "WeChat limits how often one person may sign in: wait a minute.",
            "微信限制了登录频率，请一分钟后再试。",
            retry_after_ms=jittered_ms(QUOTA_WINDOW_MS),
            extra=extra,
        )
    kind = _BY_ERRCODE.get(errcode, WeChatFailure)
    retry_after_ms = jittered_ms(BUSY_RETRY_AFTER_MS) if kind.retryable else None
    return kind(retry_after_ms=retry_after_ms, extra=extra)
