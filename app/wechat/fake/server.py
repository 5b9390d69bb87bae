"""The fake's paths, and what it remembers. The package's docstring says what each code does."""

import asyncio
import base64
import hmac
import json
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.wechat.fake.demo import DEMO_APP_ID, DEMO_APP_SECRET

TOKEN_SECONDS: Final = 7_200
OVERLAP_SECONDS: Final = 300
"""In its last five minutes a token has a successor, and both are good."""
FORCED_SPACING_SECONDS: Final = 30

SLOW_MS_MAX: Final = 10_000
BUSY_TIMES_MAX: Final = 20
# A long rehearsal must not fill the memory; the oldest codes are forgotten, as WeChat forgets them.
CODES_KEPT: Final = 200_000
MESSAGES_KEPT: Final = 1_000
BODY_BYTES_MAX: Final = 64 * 1024

_NAME: Final = r"[A-Za-z0-9._-]{1,64}"
_CODE: Final = re.compile(
    rf"(?:demo-{_NAME}|once-{_NAME}|busy-(?P<busy>\d{{1,2}})-{_NAME}|slow-(?P<slow>\d{{1,6}})|fail-(?P<fail>-?\d{{1,6}}))"
)

_MESSAGES: Final = {
    -1: "system error",
    40001: "invalid credential, access_token is invalid or not latest",
    40002: "invalid grant_type",
    40003: "invalid openid",
    40013: "invalid appid",
    40029: "invalid code",
    40037: "invalid template_id",
    40125: "invalid appsecret",
    40163: "code been used",
    40226: "code blocked",
    41001: "access_token missing",
    41002: "appid missing",
    41004: "appsecret missing",
    41008: "missing code",
    42001: "access_token expired",
    43101: "user refuse to accept the msg",
    45011: "api minute-quota reach limit, must slower, retry next minute",
    47001: "data format error",
    47003: "argument invalid",
}


@dataclass(slots=True)
class _Token:
    value: str = field(repr=False)
    ends_at_s: float
    rejected: bool = False


class FakeWeChat:
    """What the server knows: its app, the codes that were used, the valid token, the last messages.

    `clock_s` is a monotonic clock in seconds; a test may bring its own to let a token grow old. With `unionids`,
    sign-ins carry one, as they do for a mini-program that is bound to an open-platform account.
    """

    def __init__(
        self,
        *,
        app_id: str = DEMO_APP_ID,
        app_secret: str = DEMO_APP_SECRET,
        unionids: bool = False,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app_id = app_id
        self._app_secret = app_secret
        self._unionids = unionids
        self._clock_s = clock_s
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._token: _Token | None = None
        self._last_token: _Token | None = None
        self._forced_at_s = float("-inf")
        self.token_calls = 0
        self.forced_token_calls = 0
        self.code_calls = 0
        self.sent: deque[dict[str, object]] = deque(maxlen=MESSAGES_KEPT)

    def reject_token(self) -> None:
        """Refuse the current token from now on, although it is still the one that `stable_token` gives."""
        if self._token is not None:
            self._token.rejected = True

    async def code_to_session(self, request: Request) -> Response:
        """`GET /sns/jscode2session`."""
        self.code_calls += 1
        asked = request.query_params
        refusal = self._app_refusal(asked.get("appid", ""), asked.get("secret", ""))
        code = asked.get("js_code", "")
        if refusal is None and not code:
            refusal = 41008
        if refusal is None and asked.get("grant_type") != "authorization_code":
            refusal = 40002
        if refusal is None:
            refusal = await self._code_refusal(code)
        if refusal is not None:
            return _plain(_failure(refusal))
        session = {"session_key": base64.b64encode(secrets.token_bytes(16)).decode(), "openid": code}
        if self._unionids:
            session["unionid"] = f"union-{code}"
        return _plain(session)

    async def stable_token(self, request: Request) -> Response:
        """`POST /cgi-bin/stable_token`."""
        self.token_calls += 1
        asked = await _json_object(request)
        if asked is None:
            return _json(_failure(47001))
        refusal = self._app_refusal(_text(asked, "appid"), _text(asked, "secret"))
        if refusal is None and asked.get("grant_type") != "client_credential":
            refusal = 40002
        if refusal is not None:
            return _json(_failure(refusal))
        token = self._renewed(force=asked.get("force_refresh") is True)
        return _json({"access_token": token.value, "expires_in": int(token.ends_at_s - self._clock_s())})

    async def send_subscribed(self, request: Request) -> Response:
        """`POST /cgi-bin/message/subscribe/send`."""
        refusal = self._token_refusal(request.query_params.get("access_token", ""))
        if refusal is not None:
            return _json(_failure(refusal))
        message = await _json_object(request)
        if message is None:
            return _json(_failure(47001))
        to = _CODE.fullmatch(_text(message, "touser"))
        if to is None:
            return _json(_failure(40003))
        if to["fail"] is not None:
            return _json(_failure(int(to["fail"])))
        if not _text(message, "template_id"):
            return _json(_failure(40037))
        if not isinstance(message.get("data"), dict) or not message["data"]:
            return _json(_failure(47003))
        self.sent.append(message)
        return _json({"errcode": 0, "errmsg": "ok"})

    def application(self) -> Starlette:
        """Return the server: three routes and no middleware, so that a crowd signs in against it at full speed."""
        return Starlette(
            routes=[
                Route("/sns/jscode2session", self.code_to_session, methods=["GET"]),
                Route("/cgi-bin/stable_token", self.stable_token, methods=["POST"]),
                Route("/cgi-bin/message/subscribe/send", self.send_subscribed, methods=["POST"]),
            ]
        )

    def _app_refusal(self, app_id: str, app_secret: str) -> int | None:
        if not app_id:
            return 41002
        if not app_secret:
            return 41004
        if app_id != self._app_id:
            return 40013
        return None if hmac.compare_digest(app_secret.encode(), self._app_secret.encode()) else 40125

    async def _code_refusal(self, code: str) -> int | None:
        meant = _CODE.fullmatch(code)
        if meant is None:
            return 40029
        if meant["fail"] is not None:
            return int(meant["fail"])
        if meant["slow"] is not None:
            await asyncio.sleep(min(int(meant["slow"]), SLOW_MS_MAX) / 1000)
        if code.startswith("once-") and self._times_seen(code):
            return 40163
        if meant["busy"] is not None and self._times_seen(code) < min(int(meant["busy"]), BUSY_TIMES_MAX):
            return -1
        return None

    def _times_seen(self, code: str) -> int:
        """Return how often the code came before, and count this time."""
        times = self._seen.pop(code, 0)
        self._seen[code] = times + 1
        if len(self._seen) > CODES_KEPT:
            self._seen.popitem(last=False)
        return times

    def _renewed(self, *, force: bool) -> _Token:
        now_s = self._clock_s()
        token = self._token
        if force and now_s - self._forced_at_s >= FORCED_SPACING_SECONDS:
            # By force: the old token dies at once.
            self.forced_token_calls += 1
            self._forced_at_s = now_s
            self._last_token = None
        elif token is not None and token.ends_at_s - now_s > OVERLAP_SECONDS:
            return token
        else:
            self._last_token = token
        self._token = _Token(f"fake_{secrets.token_urlsafe(96)}", now_s + TOKEN_SECONDS)
        return self._token

    def _token_refusal(self, value: str) -> int | None:
        if not value:
            return 41001
        for token in (self._token, self._last_token):
            if token is not None and token.value == value:
                if token.ends_at_s <= self._clock_s():
                    return 42001
                return 40001 if token.rejected else None
        return 40001


async def _json_object(request: Request) -> dict[str, object] | None:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAX:
            return None
    try:
        asked: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", asked) if isinstance(asked, dict) else None


def _text(asked: dict[str, object], name: str) -> str:
    value = asked.get(name)
    return value if isinstance(value, str) else ""


def _failure(errcode: int) -> dict[str, object]:
    rid = "-".join(secrets.token_hex(4) for _ in range(3))
    return {"errcode": errcode, "errmsg": f"{_MESSAGES.get(errcode, 'unknown error')}, rid: {rid}"}


def _plain(answer: object) -> Response:
    return Response(json.dumps(answer), media_type="text/plain")


def _json(answer: object) -> Response:
    return Response(json.dumps(answer), headers={"content-type": "application/json; encoding=utf-8"})
