"""A thin client for WeChat's server API. It asks once, or a bounded number of times, and never longer than it may.

Sources: code2Session https://developers.weixin.qq.com/miniprogram/dev/OpenApiDoc/user-login/code2Session.html,
subscribe messages https://developers.weixin.qq.com/miniprogram/dev/OpenApiDoc/mp-message-management/subscribe-message/sendMessage.html
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Generic, Literal, Self, TypeVar

import httpx2
import msgspec
import structlog
from pydantic import SecretStr
from redis.asyncio import Redis

from app.core.problems import Problem, jittered_ms
from app.core.settings import Settings
from app.wechat.errors import (
    BUSY_RETRY_AFTER_MS,
    SYSTEM_BUSY,
    TOKEN_REJECTED,
    WeChatBusy,
    WeChatCodeInvalid,
    WeChatFailure,
    WeChatMisconfigured,
    WeChatTimeout,
    WeChatUnreachable,
    problem_for,
)
from app.wechat.tokens import AccessTokens, FetchedToken, TokenStore

log = structlog.stdlib.get_logger(__name__)

CODE_LENGTH_MAX: Final = 128
OPENID_LENGTH_MAX: Final = 128
ACCESS_TOKEN_LENGTH_MAX: Final = 2048
# WeChat's answers are below 1 KiB; anything larger is not one.
ANSWER_BYTES_MAX: Final = 64 * 1024
# The pause before the first retry; doubled for each further one, and jittered.
BUSY_BACKOFF_MS: Final = 150
# The lock outlives the longest renewal by this much, so that only a worker that stood still loses it.
LOCK_MARGIN_SECONDS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WeChatLimits:
    """How long and how often the client may try; `Settings` says why these numbers, and bounds them."""

    connect_timeout_ms: int = 2_000
    read_timeout_ms: int = 4_000
    # Everything together: waiting for a connection, retries and their pauses.
    total_timeout_ms: int = 8_000
    busy_retry_limit: int = 2
    connection_limit: int = 100
    token_margin_seconds: int = 240


@dataclass(frozen=True, slots=True)
class WeChatIdentity:
    """Who signs in. `unionid` is there only when the mini-program is bound to an open-platform account."""

    openid: str
    unionid: str | None


class _Answer(msgspec.Struct, frozen=True):
    # WeChat's `errmsg` is not a field here: it is prose, which nobody promises to be free of what was sent.
    errcode: int = 0


class _SessionAnswer(_Answer, frozen=True):
    # WeChat sends `session_key` too. It is not a field here on purpose: what is not decoded cannot be kept or logged.
    openid: str = ""
    unionid: str | None = None


class _TokenAnswer(_Answer, frozen=True):
    access_token: str = ""
    expires_in: int = 0

    def __repr__(self) -> str:
        return f"_TokenAnswer(errcode={self.errcode}, expires_in={self.expires_in})"


AnswerT = TypeVar("AnswerT", bound=_Answer)

_SESSION: Final = msgspec.json.Decoder(_SessionAnswer)
_TOKEN: Final = msgspec.json.Decoder(_TokenAnswer)
_PLAIN: Final = msgspec.json.Decoder(_Answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call(Generic[AnswerT]):
    """One call; its parameters hold secrets, so they are not in its repr."""

    method: Literal["GET", "POST"]
    path: str
    decoder: msgspec.json.Decoder[AnswerT]
    params: Mapping[str, str] = field(repr=False, default_factory=dict[str, str])
    body: bytes | None = field(repr=False, default=None)
    # Whether a second sending is harmless where the first may have been carried out.
    repeatable: bool = True


class WeChatClient:
    """Asks WeChat in the name of one mini-program. One instance a worker, for the life of its event loop.

    Every method raises subclasses of `WeChatFailure`, or `RateLimited`; those that need the access token also pass on
    Redis's errors. Proxies from the environment are not used: the app secret goes to the configured address only.
    """

    def __init__(
        self,
        base_url: str,
        app_id: str,
        app_secret: SecretStr,
        redis: Redis,
        limits: WeChatLimits | None = None,
    ) -> None:
        """`base_url` is `https://api.weixin.qq.com`, or the fake's; `redis` is where the workers share the token."""
        limits = limits or WeChatLimits()
        self._base_url = base_url.rstrip("/")
        self._app_id = app_id
        self._app_secret = app_secret
        self._limits = limits
        self._total_timeout_seconds = limits.total_timeout_ms / 1000
        # The bare transport, not httpx2.AsyncClient: that one logs whole addresses, and WeChat wants the app secret
        # and the access token in them.
        self._transport = httpx2.AsyncHTTPTransport(
            trust_env=False,
            limits=httpx2.Limits(
                max_connections=limits.connection_limit, max_keepalive_connections=limits.connection_limit
            ),
        )
        self._timeouts = {
            "timeout": httpx2.Timeout(
                connect=limits.connect_timeout_ms / 1000,
                read=limits.read_timeout_ms / 1000,
                write=limits.read_timeout_ms / 1000,
                # The total time-out ends the wait for a free connection.
                pool=None,
            ).as_dict()
        }
        self._tokens = AccessTokens(
            TokenStore(redis, app_id=app_id, lock_seconds=self._total_timeout_seconds + LOCK_MARGIN_SECONDS),
            self._fetch_token,
            margin_seconds=limits.token_margin_seconds,
            total_timeout_seconds=self._total_timeout_seconds,
        )

    @classmethod
    def from_settings(cls, settings: Settings, redis: Redis) -> Self:
        """Return a client as the settings describe it."""
        return cls(
            str(settings.wechat_base_url),
            settings.wechat_app_id,
            settings.wechat_app_secret,
            redis,
            WeChatLimits(
                connect_timeout_ms=settings.wechat_connect_timeout_ms,
                read_timeout_ms=settings.wechat_read_timeout_ms,
                total_timeout_ms=settings.wechat_total_timeout_ms,
                busy_retry_limit=settings.wechat_busy_retry_limit,
                connection_limit=settings.wechat_connection_limit,
                token_margin_seconds=settings.wechat_token_margin_seconds,
            ),
        )

    def __repr__(self) -> str:
        return f"WeChatClient(base_url={self._base_url!r}, app_id={self._app_id!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End renewals that are under way, then close the connections. Redis stays open: it is the caller's."""
        await self._tokens.aclose()
        await self._transport.aclose()

    async def identify(self, code: str) -> WeChatIdentity:
        """Return who stands behind a code from `wx.login` (code2Session). A code works once, for five minutes.

        An answer that was lost may have used the code up: it is not asked for again, the phone takes a new code.
        """
        if not code or len(code) > CODE_LENGTH_MAX or not code.isprintable():
            raise WeChatCodeInvalid
        answer = await self._ask(
            _Call(
                method="GET",
                path="/sns/jscode2session",
                decoder=_SESSION,
                params={
                    "appid": self._app_id,
                    "secret": self._app_secret.get_secret_value(),
                    "js_code": code,
                    "grant_type": "authorization_code",
                },
            )
        )
        if answer.errcode:
            raise self._refusal("/sns/jscode2session", answer)
        if not 0 < len(answer.openid) <= OPENID_LENGTH_MAX:
            raise self._unusable("/sns/jscode2session", "no open id")
        return WeChatIdentity(answer.openid, answer.unionid or None)

    async def access_token(self) -> SecretStr:
        """Return the access token that all workers share, fetching it first if there is none."""
        return await self._tokens.current()

    async def send_subscribed(
        self, *, openid: str, template_id: str, values: Mapping[str, str], page: str | None = None
    ) -> None:
        """Send one message to somebody who subscribed to its template; raise `WeChatMessageRefused` if they did not.

        Never sent twice by us: after `WeChatTimeout` or `WeChatUnreachable` nobody knows whether it went out.
        """
        message: dict[str, object] = {
            "touser": openid,
            "template_id": template_id,
            "data": {name: {"value": value} for name, value in values.items()},
        }
        if page is not None:
            message["page"] = page
        await self._ask_with_token("/cgi-bin/message/subscribe/send", msgspec.json.encode(message))

    async def _ask_with_token(self, path: str, body: bytes) -> None:
        token = await self._tokens.current()
        answer = await self._ask(self._with_token(path, body, token))
        if answer.errcode in TOKEN_REJECTED:
            token = await self._tokens.replace(token)
            answer = await self._ask(self._with_token(path, body, token))
        if answer.errcode:
            raise self._refusal(path, answer)

    @staticmethod
    def _with_token(path: str, body: bytes, token: SecretStr) -> _Call[_Answer]:
        params = {"access_token": token.get_secret_value()}
        return _Call(method="POST", path=path, decoder=_PLAIN, params=params, body=body, repeatable=False)

    async def _fetch_token(self, *, force: bool) -> FetchedToken:
        path = "/cgi-bin/stable_token"
        answer = await self._ask(
            _Call(
                method="POST",
                path=path,
                decoder=_TOKEN,
                body=msgspec.json.encode(
                    {
                        "grant_type": "client_credential",
                        "appid": self._app_id,
                        "secret": self._app_secret.get_secret_value(),
                        "force_refresh": force,
                    }
                ),
            )
        )
        if answer.errcode:
            raise self._refusal(path, answer)
        if not 0 < len(answer.access_token) <= ACCESS_TOKEN_LENGTH_MAX or answer.expires_in <= 0:
            raise self._unusable(path, "no token")
        return FetchedToken(SecretStr(answer.access_token), answer.expires_in)

    async def _ask(self, call: _Call[AnswerT]) -> AnswerT:
        """Return WeChat's answer, errcode included. Raises when none came that can be understood."""
        try:
            async with asyncio.timeout(self._total_timeout_seconds):
                outcome = await self._with_retries(call)
        except TimeoutError:
            outcome = _waiting(WeChatTimeout)
        if isinstance(outcome, Problem):
            log.warning("wechat_call_failed", path=call.path, code=outcome.code)
            raise outcome
        return outcome

    async def _with_retries(self, call: _Call[AnswerT]) -> AnswerT | Problem:
        outcome, again = await self._once(call)
        for attempt in range(self._limits.busy_retry_limit):
            if not again:
                break
            pause_ms = BUSY_BACKOFF_MS * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
            await asyncio.sleep(pause_ms / 1000)
            outcome, again = await self._once(call)
        if not isinstance(outcome, Problem) and outcome.errcode == SYSTEM_BUSY:
            return problem_for(SYSTEM_BUSY)
        return outcome

    async def _once(self, call: _Call[AnswerT]) -> tuple[AnswerT | Problem, bool]:
        """Send the call once; return what came of it, and whether it makes sense to send it again.

        Failures are returned, not raised, so that no traceback leads through a frame that holds a secret.
        """
        headers = {"content-type": "application/json"} if call.body is not None else None
        request = httpx2.Request(
            call.method,
            self._base_url + call.path,
            params=dict(call.params),
            headers=headers,
            content=call.body,
            extensions=self._timeouts,
        )
        try:
            response = await self._transport.handle_async_request(request)
            try:
                status = response.status_code
                body = await self._body(response)
            finally:
                await response.aclose()
        except httpx2.TimeoutException:
            return _waiting(WeChatTimeout), False
        except httpx2.ConnectError:
            # Nothing was sent, so sending again is harmless, whatever the call.
            return _waiting(WeChatUnreachable), True
        except httpx2.TransportError:
            return _waiting(WeChatUnreachable), False
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return _waiting(WeChatBusy), call.repeatable
        if body is None or status != HTTPStatus.OK:
            return WeChatFailure(extra={"http_status": status}), False
        try:
            answer = call.decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return WeChatFailure(), False
        return answer, answer.errcode == SYSTEM_BUSY

    async def _body(self, response: httpx2.Response) -> bytes | None:
        """Return the body, or None when it is larger than any answer of WeChat's."""
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > ANSWER_BYTES_MAX:
                return None
        return bytes(body)

    def _refusal(self, path: str, answer: _Answer) -> Problem:
        problem = problem_for(answer.errcode)
        report = log.error if isinstance(problem, WeChatMisconfigured) else log.info
        report(
            "wechat_refused",
            path=path,
            code=problem.code,
            errcode=answer.errcode,
            app_id=self._app_id,
        )
        return problem

    @staticmethod
    def _unusable(path: str, reason: str) -> WeChatFailure:
        log.error("wechat_answer_unusable", path=path, reason=reason)
        return WeChatFailure()


def _waiting(kind: type[WeChatFailure]) -> WeChatFailure:
    return kind(retry_after_ms=jittered_ms(BUSY_RETRY_AFTER_MS))
