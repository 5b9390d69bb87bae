"""The access token is fetched once for all workers, renewed early, and by force only when WeChat rejects it."""

import asyncio
from collections.abc import Generator
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import Response

from app.core.problems import Problem
from app.wechat.client import WeChatClient, WeChatLimits
from app.wechat.errors import WeChatFailure, WeChatMisconfigured, WeChatTimeout
from app.wechat.fake.demo import DEMO_APP_ID
from app.wechat.fake.server import OVERLAP_SECONDS, TOKEN_SECONDS, FakeWeChat
from app.wechat.tokens import FORCED_PER_DAY, FetchedToken, TokenStore
from tests.wechat.conftest import MakeClient, redis_connected

pytestmark = pytest.mark.anyio

PREFIX = f"clocktower:wechat:{{{DEMO_APP_ID}}}:access_token"


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class HeldWeChat(FakeWeChat):
    """Says when it is asked for a token, and can be made to keep the answer back."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock_s=clock)
        self.asked = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()

    async def stable_token(self, request: Request) -> Response:
        self.asked.set()
        await self.answering.wait()
        return await super().stable_token(request)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> HeldWeChat:
    return HeldWeChat(clock)


@pytest.fixture
def logs() -> Generator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


async def send(client: WeChatClient) -> None:
    await client.send_subscribed(openid="demo-a", template_id="t", values={"thing1": "x"})


async def grow_old(redis: Redis, clock: Clock, *, left_seconds: int) -> None:
    """Let the token grow old, for WeChat and for Redis alike."""
    clock.now_s += TOKEN_SECONDS - left_seconds
    await redis.pexpire(PREFIX, left_seconds * 1000)


async def renewals_over(client: WeChatClient) -> None:
    await asyncio.gather(*client._tokens._renewals.values(), return_exceptions=True)


async def test_fifty_callers_in_two_workers_fetch_one_token(
    make_client: MakeClient, fake: HeldWeChat, valkey: Path, redis: Redis
) -> None:
    # Each has connections of its own, as two processes have.
    async with redis_connected(valkey) as other:
        workers = [await make_client(shared=redis), await make_client(shared=other)]
        fake.answering.clear()
        asking = [asyncio.create_task(workers[n % 2].access_token()) for n in range(50)]
        await fake.asked.wait()
        # WeChat is slow: the other worker has many chances to ask too.
        for _ in range(200):
            await other.exists(PREFIX)
        fake.answering.set()
        tokens = await asyncio.gather(*asking)
        assert len(set(tokens)) == 1
        assert fake.token_calls == 1
        assert await workers[1].access_token() == tokens[0]
        assert fake.token_calls == 1
        assert not await redis.exists(PREFIX + "_lock")


async def test_the_token_leaves_redis_before_wechat_forgets_it(client: WeChatClient, redis: Redis) -> None:
    await client.access_token()
    left_ms = await redis.pttl(PREFIX)
    assert (TOKEN_SECONDS - 10) * 1000 < left_ms < TOKEN_SECONDS * 1000


async def test_an_old_token_is_given_out_while_the_next_one_is_fetched(
    client: WeChatClient, fake: FakeWeChat, redis: Redis, clock: Clock
) -> None:
    first = await client.access_token()
    await grow_old(redis, clock, left_seconds=200)
    assert set(await asyncio.gather(*(client.access_token() for _ in range(20)))) == {first}
    await renewals_over(client)
    assert (fake.token_calls, fake.forced_token_calls) == (2, 0)
    second = await client.access_token()
    assert second != first
    assert (await redis.pttl(PREFIX)) > OVERLAP_SECONDS * 1000
    await send(client)


async def test_an_early_renewal_that_fails_costs_nobody_anything(
    make_client: MakeClient, redis: Redis, clock: Clock, logs: list[structlog.typing.EventDict]
) -> None:
    first = await (await make_client()).access_token()
    await grow_old(redis, clock, left_seconds=200)
    misconfigured = await make_client(app_secret="changed-meanwhile")
    assert await misconfigured.access_token() == first
    await renewals_over(misconfigured)
    assert await misconfigured.access_token() == first
    assert "wechat_token_renewal_failed" in [line["event"] for line in logs]
    assert not await redis.exists(PREFIX + "_lock")


async def test_a_token_that_another_party_renewed_is_replaced_without_force(
    make_client: MakeClient, fake: FakeWeChat, redis: Redis
) -> None:
    client = await make_client()
    await client.access_token()
    # Somebody outside renews by force; our stored token is dead, and WeChat's normal answer knows the good one.
    await client._fetch_token(force=True)
    calls = fake.token_calls
    await asyncio.gather(*(send(client) for _ in range(20)))
    assert len(fake.sent) == 20
    assert (fake.token_calls - calls, fake.forced_token_calls) == (1, 1)
    assert await redis.exists(PREFIX)


async def test_a_rejected_token_is_renewed_by_force_exactly_once_for_all(
    make_client: MakeClient, fake: FakeWeChat, valkey: Path, redis: Redis
) -> None:
    async with redis_connected(valkey) as other:
        workers = [await make_client(shared=redis), await make_client(shared=other)]
        rejected = await workers[0].access_token()
        fake.reject_token()
        await asyncio.gather(*(send(workers[n % 2]) for n in range(40)))
        assert len(fake.sent) == 40
        assert fake.forced_token_calls == 1
        assert await workers[0].access_token() == await workers[1].access_token() != rejected


async def test_a_token_rejected_again_after_the_renewal_is_an_error_and_not_a_loop(
    client: WeChatClient, fake: FakeWeChat
) -> None:
    await client.access_token()
    fake.reject_token()
    await send(client)
    fake.reject_token()
    calls = fake.token_calls
    with pytest.raises(WeChatFailure) as caught:
        await send(client)
    assert caught.value.extra == {"wechat_errcode": 40001}
    # Forced renewals must be 30 seconds apart: WeChat is asked for its current token, and that is all.
    assert (fake.token_calls - calls, fake.forced_token_calls) == (1, 1)


async def test_an_expired_token_is_replaced(client: WeChatClient, fake: FakeWeChat, clock: Clock) -> None:
    first = await client.access_token()
    # Redis's clock stood still: the token is over for WeChat (42001) and good by our own count.
    clock.now_s += TOKEN_SECONDS
    await send(client)
    assert await client.access_token() != first
    assert fake.forced_token_calls == 0


async def test_forced_renewals_stay_below_wechats_number_for_a_day(redis: Redis) -> None:
    store = TokenStore(redis, app_id="wx-budget", lock_seconds=1)
    spacing_key = "clocktower:wechat:{wx-budget}:access_token_forced"
    allowed = 0
    for _ in range(FORCED_PER_DAY + 5):
        allowed += await store.may_force()
        assert not await store.may_force(), "two within 30 seconds"
        assert 0 < await redis.pttl(spacing_key) <= 30_000
        await redis.delete(spacing_key)
    assert allowed == FORCED_PER_DAY
    assert 0 < await redis.pttl(spacing_key + "_today") <= 86_400_000


async def test_the_lock_of_a_dead_worker_frees_itself(make_client: MakeClient, fake: FakeWeChat, redis: Redis) -> None:
    client = await make_client()
    dead = TokenStore(redis, app_id=DEMO_APP_ID, lock_seconds=0.3)
    assert await dead.lock() is not None
    async with asyncio.timeout(5):
        await client.access_token()
    assert fake.token_calls == 1


async def test_waiting_for_another_workers_renewal_ends_by_the_total_timeout(
    make_client: MakeClient, redis: Redis
) -> None:
    client = await make_client(limits=WeChatLimits(total_timeout_ms=300))
    await TokenStore(redis, app_id=DEMO_APP_ID, lock_seconds=60).lock()
    async with asyncio.timeout(3):
        with pytest.raises(Problem) as caught:
            await client.access_token()
    assert caught.value.retryable


async def test_a_worker_that_lost_its_lock_writes_nothing_and_frees_nothing(redis: Redis) -> None:
    store = TokenStore(redis, app_id="wx-lost", lock_seconds=60)
    slow = await store.lock()
    assert slow is not None
    assert await store.lock() is None
    await redis.delete("clocktower:wechat:{wx-lost}:access_token_lock")
    quick = await store.lock()
    assert quick is not None
    assert not await store.publish(slow, FetchedToken(SecretStr("older"), 7200))
    assert not await store.unlock(slow)
    assert await store.read() is None
    assert await store.publish(quick, FetchedToken(SecretStr("newer"), 7200))
    stored = await store.read()
    assert stored is not None
    assert stored.value.get_secret_value() == "newer"


async def test_all_who_wait_hear_of_a_failed_renewal_and_the_next_call_tries_again(
    make_client: MakeClient, fake: FakeWeChat, redis: Redis
) -> None:
    misconfigured = await make_client(app_secret="mistyped")
    outcomes = await asyncio.gather(*(misconfigured.access_token() for _ in range(30)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {WeChatMisconfigured}
    assert fake.token_calls == 1
    assert not await redis.exists(PREFIX + "_lock")
    assert await (await make_client()).access_token()


async def test_a_caller_that_gives_up_does_not_take_the_token_from_the_others(
    client: WeChatClient, fake: HeldWeChat
) -> None:
    fake.answering.clear()
    first = asyncio.create_task(client.access_token())
    others = [asyncio.create_task(client.access_token()) for _ in range(5)]
    await fake.asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    fake.answering.set()
    assert len(set(await asyncio.gather(*others))) == 1
    assert fake.token_calls == 1


async def test_closing_in_the_middle_of_a_renewal_frees_the_lock(
    fake: HeldWeChat, client: WeChatClient, redis: Redis
) -> None:
    fake.answering.clear()
    asking = asyncio.create_task(client.access_token())
    await fake.asked.wait()
    assert await redis.exists(PREFIX + "_lock")
    await client.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not await redis.exists(PREFIX + "_lock")


async def test_a_silent_wechat_is_a_timeout_for_the_token_too(
    fake: HeldWeChat, make_client: MakeClient, redis: Redis
) -> None:
    fake.answering.clear()
    client = await make_client(limits=WeChatLimits(total_timeout_ms=200))
    with pytest.raises(WeChatTimeout):
        await client.access_token()
    assert not await redis.exists(PREFIX + "_lock")
