"""Signing in through WeChat: every way it can fail has its own code, and none takes longer than it may."""

import asyncio
import contextlib
import logging
import socket
import time
import traceback
from contextlib import ExitStack

import pytest
import structlog
from pydantic import SecretStr
from redis.asyncio import Redis

from app.core.problems import Problem, RateLimited
from app.core.settings import Settings
from app.wechat.client import WeChatClient, WeChatIdentity, WeChatLimits
from app.wechat.errors import (
    WeChatAccountBlocked,
    WeChatBusy,
    WeChatCodeInvalid,
    WeChatCodeUsed,
    WeChatFailure,
    WeChatMessageRefused,
    WeChatMisconfigured,
    WeChatTimeout,
    WeChatUnreachable,
)
from app.wechat.fake.demo import DEMO_APP_SECRET
from app.wechat.fake.server import FakeWeChat
from tests.wechat.conftest import Broken, MakeClient, served

pytestmark = pytest.mark.anyio

FAST = WeChatLimits(connect_timeout_ms=150, read_timeout_ms=150, total_timeout_ms=2_000)


def http(status: str, body: bytes, *, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n".encode() + body


async def test_a_demo_code_signs_in_its_own_openid(client: WeChatClient) -> None:
    assert await client.identify("demo-parent-1") == WeChatIdentity("demo-parent-1", None)


async def test_a_bound_mini_program_gets_the_unionid_too(make_client: MakeClient) -> None:
    async with served(FakeWeChat(unionids=True)) as base_url:
        client = await make_client(base_url=base_url)
        assert await client.identify("demo-a") == WeChatIdentity("demo-a", "union-demo-a")


async def test_a_client_is_made_from_settings(fake_url: str, redis: Redis) -> None:
    settings = Settings(
        database_url=SecretStr("postgresql://unused"),
        redis_url=SecretStr("redis://unused"),
        token_key=SecretStr("k" * 32),
        pass_key=SecretStr("k" * 32),
        sealing_key=SecretStr("k" * 32),
        wechat_base_url=fake_url,  # pyright: ignore[reportArgumentType] - pydantic parses it, as from the environment
        wechat_app_id="wx00000000000fake",
        wechat_app_secret=SecretStr(DEMO_APP_SECRET),
    )
    async with WeChatClient.from_settings(settings, redis) as client:
        assert (await client.identify("demo-a")).openid == "demo-a"


@pytest.mark.parametrize(
    ("errcode", "kind", "code", "status", "retryable"),
    [
        (40029, WeChatCodeInvalid, "wechat_code_invalid", 401, False),
        (41008, WeChatCodeInvalid, "wechat_code_invalid", 401, False),
        (40163, WeChatCodeUsed, "wechat_code_used", 401, False),
        (40226, WeChatAccountBlocked, "wechat_account_blocked", 403, False),
        (45011, RateLimited, "rate_limited", 429, True),
        (-1, WeChatBusy, "wechat_busy", 503, True),
        (40013, WeChatMisconfigured, "wechat_misconfigured", 502, False),
        (40125, WeChatMisconfigured, "wechat_misconfigured", 502, False),
        (40164, WeChatMisconfigured, "wechat_misconfigured", 502, False),
        (40243, WeChatMisconfigured, "wechat_misconfigured", 502, False),
        (41002, WeChatMisconfigured, "wechat_misconfigured", 502, False),
        (41004, WeChatMisconfigured, "wechat_misconfigured", 502, False),
        (48001, WeChatMisconfigured, "wechat_misconfigured", 502, False),
        (99999, WeChatFailure, "wechat_error", 502, False),
    ],
)
async def test_each_errcode_has_its_own_problem(
    client: WeChatClient, errcode: int, kind: type[Problem], code: str, status: int, *, retryable: bool
) -> None:
    with pytest.raises(kind) as caught:
        await client.identify(f"fail-{errcode}")
    assert type(caught.value) is kind
    document = caught.value.document(language="en", request_id="r")
    assert (document["code"], document["status"], document["retryable"]) == (code, status, retryable)
    assert document["wechat_errcode"] == errcode
    assert ("retry_after_ms" in document) is retryable


async def test_a_rate_limited_person_is_told_to_wait_for_the_minute_to_pass(client: WeChatClient) -> None:
    with pytest.raises(RateLimited) as caught:
        await client.identify("fail-45011")
    assert caught.value.retry_after_ms is not None
    assert 60_000 <= caught.value.retry_after_ms <= 90_000


async def test_a_real_code_works_once(client: WeChatClient) -> None:
    assert (await client.identify("once-a")).openid == "once-a"
    with pytest.raises(WeChatCodeUsed):
        await client.identify("once-a")


@pytest.mark.parametrize("code", ["", "x" * 129, "demo-a\x00", "demo-a\r\nhost: elsewhere"])
async def test_a_code_that_cannot_be_one_costs_no_call(client: WeChatClient, fake: FakeWeChat, code: str) -> None:
    with pytest.raises(WeChatCodeInvalid):
        await client.identify(code)
    assert fake.code_calls == 0


@pytest.mark.parametrize("code", ["demo-a&appid=other", "demo-a#", "demo-%41", "demo-微信", "demo-"])
async def test_a_code_reaches_wechat_as_it_is(client: WeChatClient, fake: FakeWeChat, code: str) -> None:
    with pytest.raises(WeChatCodeInvalid):
        await client.identify(code)
    assert fake.code_calls == 1


@pytest.mark.parametrize("wrong", ["app_id", "app_secret"])
async def test_a_wrong_app_id_or_secret_is_the_operators_fault_and_logged(make_client: MakeClient, wrong: str) -> None:
    client = await make_client(**{wrong: "wx-mistyped"})
    with structlog.testing.capture_logs() as logs, pytest.raises(WeChatMisconfigured):
        await client.identify("demo-a")
    assert [(line["event"], line["log_level"]) for line in logs] == [("wechat_refused", "error")]
    with pytest.raises(WeChatMisconfigured):
        await client.access_token()


async def test_busy_is_asked_again_until_it_passes(client: WeChatClient, fake: FakeWeChat) -> None:
    assert (await client.identify("busy-2-a")).openid == "busy-2-a"
    assert fake.code_calls == 3


@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_busy_is_asked_again_a_bounded_number_of_times(
    make_client: MakeClient, fake: FakeWeChat, retries: int
) -> None:
    client = await make_client(limits=WeChatLimits(busy_retry_limit=retries))
    with pytest.raises(WeChatBusy):
        await client.identify("busy-20-a")
    assert fake.code_calls == retries + 1


async def test_a_slow_answer_is_a_timeout_and_is_not_asked_for_again(make_client: MakeClient, fake: FakeWeChat) -> None:
    client = await make_client(limits=FAST)
    with pytest.raises(WeChatTimeout) as caught:
        await client.identify("slow-5000")
    assert (caught.value.status, caught.value.code) == (504, "wechat_timeout")
    assert fake.code_calls == 1


async def test_an_answer_that_trickles_ends_at_the_total_timeout(make_client: MakeClient) -> None:
    hung_up = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        # Every byte starts the read time-out anew; only the total one ends this.
        while not reader.at_eof():
            writer.write(b" ")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)
        writer.close()
        hung_up.set()

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = await make_client(base_url=base_url, limits=WeChatLimits(read_timeout_ms=250, total_timeout_ms=600))
        started_s = time.monotonic()
        with pytest.raises(WeChatTimeout):
            await client.identify("demo-a")
        assert 0.5 < time.monotonic() - started_s < 5
        await hung_up.wait()


async def test_a_connection_that_is_not_accepted_is_a_timeout(make_client: MakeClient) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        # A full backlog drops further handshakes, as an overloaded host does.
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(listener.getsockname())
        client = await make_client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", limits=FAST)
        with pytest.raises(WeChatTimeout):
            await client.identify("demo-a")


async def test_waiting_for_a_free_connection_counts_towards_the_total(make_client: MakeClient) -> None:
    limits = WeChatLimits(connection_limit=1, total_timeout_ms=400, read_timeout_ms=5_000)
    client = await make_client(limits=limits)
    answers = await asyncio.gather(*(client.identify("slow-3000") for _ in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [WeChatTimeout] * 5


async def test_nobody_listening_is_unreachable(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = await make_client(base_url=f"http://127.0.0.1:{port}", limits=FAST)
    with pytest.raises(WeChatUnreachable) as caught:
        await client.identify("demo-a")
    assert caught.value.document(language="zh-CN", request_id="r")["retryable"] is True


SESSION = b'{"openid": "demo-a", "session_key": "c2VjcmV0"}'


@pytest.mark.parametrize(
    ("answer", "kind", "requests"),
    [
        pytest.param(http("200 OK", SESSION[:20], length=len(SESSION)), WeChatUnreachable, 1, id="cut-body"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-le", WeChatUnreachable, 1, id="cut-head"),
        pytest.param(b"", WeChatUnreachable, 1, id="nothing"),
        pytest.param(b"\x00\x01 not HTTP at all\r\n\r\n", WeChatUnreachable, 1, id="not-http"),
        pytest.param(http("200 OK", SESSION[:20]), WeChatFailure, 1, id="half-json"),
        pytest.param(http("200 OK", b"<html>maintenance</html>"), WeChatFailure, 1, id="html"),
        pytest.param(http("200 OK", b""), WeChatFailure, 1, id="empty"),
        pytest.param(http("200 OK", b"[1]"), WeChatFailure, 1, id="not-an-object"),
        pytest.param(http("200 OK", b'{"openid": "\xff"}'), WeChatFailure, 1, id="not-utf-8"),
        pytest.param(http("200 OK", b'{"openid": 7}'), WeChatFailure, 1, id="wrong-type"),
        pytest.param(http("200 OK", b"{}"), WeChatFailure, 1, id="no-openid"),
        pytest.param(http("200 OK", b'{"openid": "' + b"x" * 129 + b'"}'), WeChatFailure, 1, id="long-openid"),
        pytest.param(http("200 OK", b" " * 70_000), WeChatFailure, 1, id="too-large"),
        pytest.param(http("302 Found", b""), WeChatFailure, 1, id="redirect"),
        pytest.param(http("404 Not Found", b"{}"), WeChatFailure, 1, id="not-found"),
        pytest.param(http("500 Internal Server Error", b"{}"), WeChatBusy, 3, id="500"),
        pytest.param(http("502 Bad Gateway", b"<html>"), WeChatBusy, 3, id="502"),
    ],
)
async def test_a_broken_answer_is_a_problem_of_its_own(
    make_client: MakeClient, answer: bytes, kind: type[Problem], requests: int
) -> None:
    async with Broken(answer).serving() as broken:
        client = await make_client(base_url=broken.base_url, limits=FAST)
        with pytest.raises(kind) as caught:
            await client.identify("demo-a")
        assert type(caught.value) is kind
        assert broken.requests == requests


async def test_an_answer_that_stops_half_way_is_a_timeout(make_client: MakeClient) -> None:
    async with Broken(http("200 OK", SESSION[:20], length=len(SESSION)), hang=True).serving() as broken:
        client = await make_client(base_url=broken.base_url, limits=FAST)
        with pytest.raises(WeChatTimeout):
            await client.identify("demo-a")


async def test_nothing_secret_is_in_any_log_or_repr(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "c2VjcmV0c2Vzc2lvbg=="
    body = b'{"openid": "demo-a", "session_key": "' + secret.encode() + b'"}'
    async with Broken(http("200 OK", body)).serving() as broken:
        identity = await (await make_client(base_url=broken.base_url)).identify("demo-code-7")
    client = await make_client()
    token = (await client.access_token()).get_secret_value()
    await client.send_subscribed(openid="demo-a", template_id="t", values={"thing1": "书法课"})
    failures: list[BaseException] = []
    mistyped = await make_client(app_secret="mistyped-secret")
    with structlog.testing.capture_logs() as logs:
        for refused in (
            client.identify("fail-40029"),
            client.identify("fail--1"),
            mistyped.identify("demo-a"),
            mistyped._fetch_token(force=False),
            client.send_subscribed(openid="fail-43101", template_id="t", values={"thing1": "x"}),
        ):
            with pytest.raises(Problem) as caught:
                await refused
            failures.append(caught.value)

    printed = capsys.readouterr()
    said = "\n".join(
        [caplog.text, printed.out, printed.err, repr(logs), repr(identity), repr(client), repr(vars(client))]
        + [repr(failure) + repr(failure.__cause__) + repr(vars(failure)) for failure in failures]
        # Log renderers that show the locals of a traceback exist; ours must have nothing to show.
        + [
            repr(frame.f_locals)
            for failure in failures
            for frame, _ in traceback.walk_tb(failure.__traceback__)
            if "/app/wechat/" in frame.f_code.co_filename
        ]
    )
    assert "httpcore2" in caplog.text, "the transport's own debug log was not captured"
    assert secret not in said
    assert "demo-code-7" not in said
    assert token not in said
    assert DEMO_APP_SECRET not in said
    assert "mistyped-secret" not in said
    assert [entry["errcode"] for entry in logs if entry["event"] == "wechat_refused"]
    # WeChat's own sentences.
    assert "rid: " not in said


async def test_a_message_goes_out_to_who_subscribed(client: WeChatClient, fake: FakeWeChat) -> None:
    await client.send_subscribed(openid="demo-a", template_id="t-1", values={"thing1": "书法课"}, page="pages/x")
    assert list(fake.sent) == [
        {"touser": "demo-a", "template_id": "t-1", "data": {"thing1": {"value": "书法课"}}, "page": "pages/x"}
    ]


async def test_a_message_to_who_did_not_subscribe_is_refused(client: WeChatClient, fake: FakeWeChat) -> None:
    with pytest.raises(WeChatMessageRefused):
        await client.send_subscribed(openid="fail-43101", template_id="t", values={"thing1": "x"})
    assert not fake.sent


async def test_a_message_whose_fate_is_unknown_is_not_sent_again(make_client: MakeClient, client: WeChatClient) -> None:
    await client.access_token()
    async with Broken(http("502 Bad Gateway", b"")).serving() as broken:
        cut_off = await make_client(base_url=broken.base_url)
        with pytest.raises(WeChatBusy):
            await cut_off.send_subscribed(openid="demo-a", template_id="t", values={"thing1": "x"})
        assert broken.requests == 1


async def test_a_thousand_parents_sign_in_at_once(make_client: MakeClient) -> None:
    client = await make_client(limits=WeChatLimits(total_timeout_ms=60_000, read_timeout_ms=60_000))
    identities = await asyncio.gather(*(client.identify(f"demo-{n}") for n in range(1000)))
    assert [identity.openid for identity in identities] == [f"demo-{n}" for n in range(1000)]
