import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2
import pytest
from redis.asyncio import Redis

from app.core.redis import connect_redis
from app.core.settings import Settings
from app.core.web.limits import PATIENCE_SECONDS, Limiter, Policy
from app.main import REDIS_CONNECTIONS, create_api
from tests.conftest import SignIn
from tests.core.test_web_bodies import problem_of

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected(settings: Settings, **changes: object) -> AsyncGenerator[httpx2.AsyncClient]:
    api = create_api(settings.model_copy(update=changes))
    async with (
        api.router.lifespan_context(api),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=api), base_url="http://clocktower.test") as client,
    ):
        yield client


async def test_an_account_past_its_limit_is_told_when_to_come_back(settings: Settings, sign_in: SignIn) -> None:
    async with connected(settings, rate_limit_per_minute=10) as client:
        one, other = await sign_in("one"), await sign_in("other")
        answers = [await client.get("/v1/me", headers=one) for _ in range(11)]
        neighbour = await client.get("/v1/me", headers=other)
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]
    assert [int(re.findall(r";r=(\d+)", answer.headers["RateLimit"])[0]) for answer in answers] == [
        *range(9, -1, -1),
        0,
    ]
    assert answers[0].headers["RateLimit-Policy"] == '"account";q=10;w=60'
    refused = problem_of(answers[-1], 429, "rate_limited")
    # A tenth of the window gives one request back; up to half as long again spreads the phones out.
    assert 5_000 <= refused["retry_after_ms"] <= 9_000
    assert int(answers[-1].headers["Retry-After"]) >= 5
    # The neighbour at the same address is not concerned.
    assert neighbour.status_code == 200


async def test_without_sign_in_an_address_has_ten_times_as_much(settings: Settings) -> None:
    async with connected(settings, rate_limit_per_minute=10) as client:
        started_at = time.monotonic()
        answers = await asyncio.gather(*(client.get("/v1/nothing") for _ in range(150)))
        taken_seconds = time.monotonic() - started_at
    # A hundred at once, and one more for each 0.6 s that they take.
    assert all("RateLimit" in answer.headers for answer in answers)
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {404, 429}
    assert 100 <= statuses.count(404) <= 101 + taken_seconds / 0.6
    assert answers[0].headers["RateLimit-Policy"] == '"address";q=100;w=60'


async def test_a_forged_token_does_not_open_a_bucket_of_its_own(settings: Settings) -> None:
    async with connected(settings, rate_limit_per_minute=10) as client:
        answers = [
            await client.get("/v1/me", headers={"Authorization": f"Bearer forged-{number}"}) for number in range(150)
        ]
    assert answers[-1].status_code == 429


async def test_sign_ins_of_a_school_have_a_limit_of_their_own(settings: Settings) -> None:
    async with connected(settings, rate_limit_per_minute=10, sign_in_limit_per_minute=200) as client:
        answers = [await client.post("/v1/auth/wechat", json={"code": f"demo-{n % 3}"}) for n in range(120)]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].headers["RateLimit-Policy"] == '"sign_in";q=200;w=60'


async def test_the_time_and_probes_are_free(settings: Settings) -> None:
    async with connected(settings, rate_limit_per_minute=10) as client:
        answers = [await client.get(path) for path in ["/v1/time", "/health/live", "/openapi.json"] for _ in range(120)]
    assert {answer.status_code for answer in answers} == {200}
    assert not any("RateLimit" in answer.headers for answer in answers)


async def test_a_bucket_fills_again_evenly(redis: Redis) -> None:
    limiter, policy = Limiter(redis), Policy("test", 2)
    first = await limiter.take("x", policy)
    assert first is not None
    assert (first.allowed, first.remaining, first.reset_seconds) == (True, 1, 30)
    # Half a minute gives it back, and the key goes with it: long enough for a slow machine to look in between.
    assert 0 < await redis.pttl("rate:test:x") <= 30_002


async def test_without_redis_everybody_is_let_through(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    gone = Redis(unix_socket_path="/nonexistent/valkey.sock")
    try:
        limiter = Limiter(gone)
        assert await limiter.take("x", Policy("test", 1)) is None
        assert await limiter.take("x", Policy("test", 1)) is None
    finally:
        await gone.aclose()
    assert caplog.text.count("rate_limit_not_asked") == 1
    assert settings.rate_limit_per_minute


async def test_a_busy_worker_still_counts_everybody(settings: Settings) -> None:
    async def hold_up_the_loop() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
            time.sleep(0.1)  # noqa: ASYNC251 - what a burst of other work does to the loop

    redis = connect_redis(settings, connections=REDIS_CONNECTIONS)
    try:
        # Few enough a minute that none comes back meanwhile.
        limiter, policy = Limiter(redis), Policy("test", 10)
        verdicts, _ = await asyncio.gather(
            asyncio.gather(*(limiter.take("x", policy) for _ in range(300))), hold_up_the_loop()
        )
    finally:
        await redis.aclose()
    assert None not in verdicts
    assert sum(verdict.allowed for verdict in verdicts if verdict is not None) == 10


async def test_a_frozen_redis_holds_nobody_up_for_long(caplog: pytest.LogCaptureFixture) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    frozen = Redis(host="127.0.0.1", port=port, max_connections=REDIS_CONNECTIONS)
    try:
        limiter, started_at = Limiter(frozen), time.monotonic()
        verdicts = await asyncio.gather(*(limiter.take("x", Policy("test", 100)) for _ in range(300)))
        taken_seconds = time.monotonic() - started_at
    finally:
        await frozen.aclose()
        server.close()
        await server.wait_closed()
    assert set(verdicts) == {None}
    # The first few wait; whoever queued behind them does not.
    assert taken_seconds < 2 * PATIENCE_SECONDS
    assert caplog.text.count("rate_limit_not_asked") == 1
