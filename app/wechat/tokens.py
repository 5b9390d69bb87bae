"""One access token for all workers: kept in Redis, renewed early, by one worker at a time.

WeChat's `stable_token` gives the same token to everybody who asks until five minutes before its end; from then on it
gives the next one, and both are good until the old one ends. So a renewal in that window disturbs nobody, and a worker
that loses the lock in the middle of one does no harm. A forced renewal kills the token that others hold, is limited
to 20 a day, and is ignored within 30 seconds of the last: it is kept for a token that WeChat itself rejects.

Source: https://developers.weixin.qq.com/miniprogram/dev/OpenApiDoc/mp-access-token/getStableAccessToken.html
"""

import asyncio
import contextlib
import random
import secrets
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import structlog
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.core.problems import jittered_ms
from app.wechat.errors import BUSY_RETRY_AFTER_MS, WeChatBusy, WeChatTimeout

log = structlog.stdlib.get_logger(__name__)

FORCED_SPACING_SECONDS: Final = 30
FORCED_PER_DAY: Final = 18
"""Below WeChat's 20, so that an operator with a leaked token has two left."""
DAY_SECONDS: Final = 86_400

# A renewal takes about 100 ms; asking more often than this only loads Redis.
LOCK_POLL_MS: Final = 40

# Tells WeChat's own count of the seconds from ours: the answer was on its way for some of them.
TRANSIT_SECONDS: Final = 2

# Only the lock's owner may write: a worker that slept past its lock must not put back an older token.
_PUBLISH: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[1])
return 1
"""

_UNLOCK: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

_MAY_FORCE: Final = """
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then return 0 end
local forced = redis.call('INCR', KEYS[2])
if forced == 1 then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
if forced > tonumber(ARGV[3]) then return 0 end
return 1
"""


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token and the seconds that it has left, by Redis's clock."""

    value: SecretStr
    left_seconds: float


@dataclass(frozen=True, slots=True)
class FetchedToken:
    """A token as WeChat just gave it."""

    value: SecretStr
    expires_in_seconds: int


class TokenFetch(Protocol):
    """Asks WeChat for a token; by force, it kills the one that others hold."""

    async def __call__(self, *, force: bool) -> FetchedToken:
        """Return the token that is good now. Raises `WeChatFailure` or `RateLimited`."""
        ...


class TokenStore:
    """The token's place in Redis, and the lock of the worker that renews it.

    All keys of an app share one hash tag, so that each script finds them on one node of a cluster. Time is Redis's:
    a worker whose clock is wrong neither keeps a dead token nor throws a good one away. Redis errors pass through.
    """

    def __init__(self, redis: Redis, *, app_id: str, lock_seconds: float) -> None:
        """Keep the token of `app_id`; a renewal's lock frees itself after `lock_seconds`."""
        self._redis = redis
        self._lock_ms = int(lock_seconds * 1000)
        prefix = f"clocktower:wechat:{{{app_id}}}:"
        self._token_key = prefix + "access_token"
        self._lock_key = prefix + "access_token_lock"
        self._forced_key = prefix + "access_token_forced"
        self._forced_today_key = prefix + "access_token_forced_today"

    async def read(self) -> StoredToken | None:
        """Return the token that all workers share, or None when there is none or its time is over."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(self._token_key)
            pipe.pttl(self._token_key)
            value, left_ms = cast("tuple[bytes | str | None, int]", tuple(await pipe.execute()))
        # The key can run out between the two commands: it then has a value and no time.
        if value is None or left_ms <= 0:
            return None
        text = value.decode() if isinstance(value, bytes) else value
        return StoredToken(SecretStr(text), left_ms / 1000)

    async def lock(self) -> str | None:
        """Take the lock of renewal; return the owner's mark, or None when another worker has it."""
        owner = secrets.token_hex(16)
        taken: object = await self._redis.set(self._lock_key, owner, nx=True, px=self._lock_ms)
        return owner if taken else None

    async def publish(self, owner: str, token: FetchedToken) -> bool:
        """Write the token for all workers and free the lock; False, and nothing written, when the lock was lost."""
        keep_ms = max(1, token.expires_in_seconds - TRANSIT_SECONDS) * 1000
        keys = (self._lock_key, self._token_key)
        return await self._script(_PUBLISH, *keys, args=(owner, token.value.get_secret_value(), keep_ms))

    async def unlock(self, owner: str) -> bool:
        """Free the lock if it is still the owner's."""
        return await self._script(_UNLOCK, self._lock_key, args=(owner,))

    async def may_force(self) -> bool:
        """Count one forced renewal; False when it would come too soon or go past the day's number."""
        keys = (self._forced_key, self._forced_today_key)
        args = (FORCED_SPACING_SECONDS * 1000, DAY_SECONDS * 1000, FORCED_PER_DAY)
        return await self._script(_MAY_FORCE, *keys, args=args)

    async def _script(self, script: str, *keys: str, args: tuple[str | int, ...]) -> bool:
        return await self._redis.eval(script, len(keys), *keys, *args) == 1


@dataclass(frozen=True, slots=True)
class _Renewal:
    """What a renewal replaces. Callers that want the same one share it, within a worker."""

    replaces: SecretStr | None
    rejected: bool


class AccessTokens:
    """Gives out the shared token, and sees to it that it is good.

    A token with less than `margin_seconds` left is still given out while one worker fetches the next.
    However many callers miss a token at once, WeChat is asked once.
    """

    def __init__(
        self,
        store: TokenStore,
        fetch: TokenFetch,
        *,
        margin_seconds: float,
        total_timeout_seconds: float,
    ) -> None:
        """Renew through `fetch`; with the wait for the lock that ends by `total_timeout_seconds`."""
        self._store = store
        self._fetch = fetch
        self._margin_seconds = margin_seconds
        self._total_timeout_seconds = total_timeout_seconds
        self._polls = max(1, int(total_timeout_seconds * 1000 / LOCK_POLL_MS))
        self._renewals: dict[_Renewal, asyncio.Task[SecretStr]] = {}
        self._reading: asyncio.Task[StoredToken | None] | None = None

    async def current(self) -> SecretStr:
        """Return a token that is good by all we know. Raises what the call to WeChat raises."""
        stored = await self._read()
        if stored is None:
            return await self._renew(_Renewal(None, rejected=False))
        if stored.left_seconds < self._margin_seconds:
            # Nobody waits for an early renewal: the token at hand is good for minutes yet.
            self._start(_Renewal(stored.value, rejected=False))
        return stored.value

    async def replace(self, rejected: SecretStr) -> SecretStr:
        """Return a token other than the one WeChat rejected, by force if WeChat still calls that one current.

        May return the rejected one when a forced renewal is not allowed now (see `TokenStore.may_force`).
        """
        return await self._renew(_Renewal(rejected, rejected=True))

    async def aclose(self) -> None:
        """End renewals that are under way; their locks are freed."""
        running: list[asyncio.Task[Any]] = [*self._renewals.values()]
        if self._reading is not None:
            running.append(self._reading)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _read(self) -> StoredToken | None:
        # Shared by all who ask at once: Redis's connections are few, and one beyond them is refused, not queued.
        if self._reading is None:
            self._reading = asyncio.create_task(self._store.read(), name="wechat-token-read")
            self._reading.add_done_callback(self._read_ended)
        return await asyncio.shield(self._reading)

    def _read_ended(self, task: asyncio.Task[StoredToken | None]) -> None:
        self._reading = None
        if not task.cancelled():
            # Marks a failure as seen, where every caller has left meanwhile.
            task.exception()

    async def _renew(self, renewal: _Renewal) -> SecretStr:
        # Shielded: a caller that gives up must not take the token from the others who wait for it.
        return await asyncio.shield(self._start(renewal))

    def _start(self, renewal: _Renewal) -> asyncio.Task[SecretStr]:
        running = self._renewals.get(renewal)
        if running is None:
            running = asyncio.create_task(self._bounded(renewal), name="wechat-token-renewal")
            self._renewals[renewal] = running
            running.add_done_callback(lambda task: self._ended(renewal, task))
        return running

    def _ended(self, renewal: _Renewal, task: asyncio.Task[SecretStr]) -> None:
        del self._renewals[renewal]
        # An early renewal has no caller to tell; asking for the exception also marks it as seen.
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.warning("wechat_token_renewal_failed", failure=type(failure).__name__, rejected=renewal.rejected)

    async def _bounded(self, renewal: _Renewal) -> SecretStr:
        try:
            async with asyncio.timeout(self._total_timeout_seconds):
                return await self._locked(renewal)
        except TimeoutError:
            raise WeChatTimeout(retry_after_ms=jittered_ms(BUSY_RETRY_AFTER_MS)) from None

    async def _locked(self, renewal: _Renewal) -> SecretStr:
        for _ in range(self._polls):
            stored = await self._store.read()
            if stored is not None and stored.value != renewal.replaces:
                return stored.value
            owner = await self._store.lock()
            if owner is not None:
                return await self._fetched(renewal, owner)
            await asyncio.sleep(random.uniform(0.5, 1.5) * LOCK_POLL_MS / 1000)  # noqa: S311 - spreads load only
        raise WeChatBusy(retry_after_ms=jittered_ms(BUSY_RETRY_AFTER_MS))

    async def _fetched(self, renewal: _Renewal, owner: str) -> SecretStr:
        try:
            stored = await self._store.read()
            if stored is not None and stored.value != renewal.replaces:
                # Renewed by the lock's last owner, between our look and our lock.
                await self._store.unlock(owner)
                return stored.value
            token = await self._fetch(force=False)
            if renewal.rejected and token.value == renewal.replaces:
                token = await self._forced(token)
            if not await self._store.publish(owner, token):
                log.warning("wechat_token_lock_lost")
        except BaseException:
            # If this fails too, the lock frees itself.
            with contextlib.suppress(RedisError):
                await self._store.unlock(owner)
            raise
        else:
            return token.value

    async def _forced(self, token: FetchedToken) -> FetchedToken:
        if not await self._store.may_force():
            log.error("wechat_forced_renewal_not_allowed", per_day=FORCED_PER_DAY, spacing_s=FORCED_SPACING_SECONDS)
            return token
        log.warning("wechat_token_renewed_by_force")
        return await self._fetch(force=True)
