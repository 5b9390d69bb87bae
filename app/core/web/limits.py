"""Keeps one caller from crowding out the others: so many requests a minute for an account, or for an address.

The generic cell rate algorithm (ITU-T I.371), in one call to Redis: a caller has a bucket of `quota` requests that
refills evenly over the window, and only one instant is stored for it. Headers as in
draft-ietf-httpapi-ratelimit-headers-11.

When Redis does not answer, everybody is let through. The limit protects the service from a few; if it refused
everybody while Redis is away, it would be the outage itself, also for what needs no Redis.
"""

import asyncio
import math
from dataclasses import dataclass
from typing import Final, cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.clock import Clock
from app.core.problems import RateLimited, jittered_ms
from app.core.settings import Settings
from app.core.web.answers import problem_response
from app.core.web.callers import account_of, address_of
from app.core.web.headers import standing_headers

log = structlog.stdlib.get_logger(__name__)

WINDOW_SECONDS: Final = 60
# Families share an address with their neighbours, and pupils with their whole school.
ADDRESS_FACTOR: Final = 10
# A limit is not worth a longer wait for Redis; past it the request goes through. It is long enough for a worker that
# is busy with an opening to come round to the answer: the limit must not fall when it is needed most.
PATIENCE_SECONDS: Final = 1.0
# Fewer than the client's connections, so that the limiter never takes the last one from somebody else.
CALLS_AT_ONCE: Final = 16
# After Redis has failed to answer, the next is let through without asking for so long.
PAUSE_SECONDS: Final = 5.0

# Retry-After counts whole seconds.
RETRY_MS_MIN: Final = 1_000

_LIMITED_PREFIX: Final = "/v1/"
# A countdown asks for the time again and again, and the answer costs nothing.
_FREE_PATHS: Final = frozenset({"/v1/time"})
_SIGN_IN_PATH: Final = "/v1/auth/wechat"
# What it takes is a secret that somebody might guess.
_ACCEPTANCE_PATH: Final = "/v1/me/invitations/accept"

# KEYS[1] the caller; ARGV: quota, window in µs. Returns {allowed, remaining, µs until one is free, µs until all are}.
# The instant stored is the one at which the bucket is full again (the "theoretical arrival time").
_SCRIPT: Final = """
local quota, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local step = window / quota
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
if full_at + step - now > window then
  return {0, 0, math.ceil(full_at + step - window - now), math.ceil(full_at - now)}
end
full_at = full_at + step
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000) + 1)
return {1, math.floor((window - (full_at - now)) / step), 0, math.ceil(full_at - now)}
"""


@dataclass(frozen=True, slots=True)
class Policy:
    """How many requests one caller has in a window. `name` is what the headers call it."""

    name: str
    quota: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one request, and how the caller stands."""

    policy: Policy
    allowed: bool
    remaining: int
    retry_after_ms: int
    reset_seconds: int

    def headers(self) -> dict[str, str]:
        """Return the two headers that say so."""
        return standing_headers(
            self.policy.name,
            self.policy.quota,
            WINDOW_SECONDS,
            remaining=self.remaining,
            reset_seconds=self.reset_seconds,
        )


class Limiter:
    """Counts requests in Redis, for all workers together."""

    def __init__(self, redis: Redis) -> None:
        self._script = redis.register_script(_SCRIPT)
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self._asks_again_at = 0.0

    async def take(self, caller: str, policy: Policy) -> Verdict | None:
        """Count one request of this caller; None where Redis could not say, which lets the request through."""
        if self._pauses():
            return None
        # Only the wait for Redis is bounded: callers that queue here find the pause as soon as one of them has met it.
        async with self._slots:
            if self._pauses():
                return None
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    answer: object = await self._script(  # pyright: ignore[reportUnknownMemberType] - redis-py leaves it untyped
                        keys=[f"rate:{policy.name}:{caller}"], args=[policy.quota, WINDOW_SECONDS * 1_000_000]
                    )
            except (RedisError, OSError) as error:
                self._pause(error)
                return None
        allowed, remaining, wait_us, reset_us = cast("list[int]", answer)
        return Verdict(policy, bool(allowed), remaining, math.ceil(wait_us / 1000), math.ceil(reset_us / 1_000_000))

    def _pauses(self) -> bool:
        return asyncio.get_running_loop().time() < self._asks_again_at

    def _pause(self, error: Exception) -> None:
        # Those that were asking beside it fail with it, and are no news.
        if not self._pauses():
            log.warning("rate_limit_not_asked", error=type(error).__name__, pause_seconds=PAUSE_SECONDS)
        self._asks_again_at = asyncio.get_running_loop().time() + PAUSE_SECONDS


class RateLimits:
    """Asks the limiter before the application sees a request, and tells the caller how it stands."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._key = settings.token_key.get_secret_value().encode()
        self._account = Policy("account", settings.rate_limit_per_minute)
        self._address = Policy("address", settings.rate_limit_per_minute * ADDRESS_FACTOR)
        self._sign_in = Policy("sign_in", settings.sign_in_limit_per_minute)
        self._acceptance = Policy("invitation", settings.invitation_limit_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with 429; its answer says how the caller stands."""
        if scope["type"] != "http" or not _is_limited(scope["path"]):
            await self._app(scope, receive, send)
            return
        state = scope["app"].state
        limiter: Limiter = state.limiter
        verdict = await limiter.take(*self._caller(scope, state.clock))
        if verdict is None:
            await self._app(scope, receive, send)
            return
        headers = verdict.headers()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        if verdict.allowed:
            await self._app(scope, receive, send_with_headers)
            return
        problem = RateLimited(retry_after_ms=jittered_ms(max(verdict.retry_after_ms, RETRY_MS_MIN)))
        await problem_response(problem, scope)(scope, receive, send_with_headers)

    def _caller(self, scope: Scope, clock: Clock) -> tuple[str, Policy]:
        account_id = account_of(scope, key=self._key, now_ms=clock.now_ms())
        if account_id is not None:
            return account_id.hex, self._acceptance if scope["path"] == _ACCEPTANCE_PATH else self._account
        return address_of(scope), self._sign_in if scope["path"] == _SIGN_IN_PATH else self._address


def _is_limited(path: str) -> bool:
    return path.startswith(_LIMITED_PREFIX) and path not in _FREE_PATHS
