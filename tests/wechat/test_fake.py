"""The fake has the real server's paths, fields, error codes and manners."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest

from app.wechat.fake.demo import DEMO_APP_ID, DEMO_APP_SECRET
from app.wechat.fake.server import OVERLAP_SECONDS, TOKEN_SECONDS, FakeWeChat
from tests.wechat.conftest import served

pytestmark = pytest.mark.anyio

SIGN_IN = {
    "appid": DEMO_APP_ID,
    "secret": DEMO_APP_SECRET,
    "js_code": "demo-a",
    "grant_type": "authorization_code",
}
TOKEN = {"appid": DEMO_APP_ID, "secret": DEMO_APP_SECRET, "grant_type": "client_credential"}
MESSAGE = {"touser": "demo-a", "template_id": "t", "data": {"thing1": {"value": "x"}}}


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def phone(clock: Clock) -> AsyncGenerator[httpx2.AsyncClient]:
    async with (
        served(FakeWeChat(clock_s=clock)) as base_url,
        httpx2.AsyncClient(base_url=base_url, trust_env=False) as client,
    ):
        yield client


async def sign_in(phone: httpx2.AsyncClient, **changed: str | None) -> dict[str, Any]:
    params = {name: value for name, value in {**SIGN_IN, **changed}.items() if value is not None}
    answer = await phone.get("/sns/jscode2session", params=params)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.json()


async def token(phone: httpx2.AsyncClient, **changed: object) -> dict[str, Any]:
    answer = await phone.post("/cgi-bin/stable_token", json={**TOKEN, **changed})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json; encoding=utf-8"
    return answer.json()


async def send(phone: httpx2.AsyncClient, access_token: str, **changed: object) -> int:
    answer = await phone.post(
        "/cgi-bin/message/subscribe/send", params={"access_token": access_token}, json={**MESSAGE, **changed}
    )
    assert answer.status_code == 200
    return answer.json()["errcode"]


async def test_a_demo_code_gives_its_openid_and_a_session_key_as_often_as_asked(phone: httpx2.AsyncClient) -> None:
    first, second = await sign_in(phone), await sign_in(phone)
    assert first["openid"] == second["openid"] == "demo-a"
    assert len(base64.b64decode(first["session_key"], validate=True)) == 16
    assert first["session_key"] != second["session_key"]


@pytest.mark.parametrize(
    ("changed", "errcode"),
    [
        ({"appid": None}, 41002),
        ({"secret": None}, 41004),
        ({"js_code": None}, 41008),
        ({"js_code": ""}, 41008),
        ({"appid": "wx-other"}, 40013),
        ({"secret": "other"}, 40125),
        ({"secret": "密"}, 40125),
        ({"grant_type": None}, 40002),
        ({"js_code": "other"}, 40029),
        ({"js_code": "demo-"}, 40029),
        ({"js_code": "demo-" + "x" * 65}, 40029),
        ({"js_code": "demo-微信"}, 40029),
        ({"js_code": "demo-a\n"}, 40029),
        ({"js_code": "fail-40226"}, 40226),
        ({"js_code": "fail--1"}, -1),
    ],
)
async def test_each_mistake_has_wechats_own_code(
    phone: httpx2.AsyncClient, changed: dict[str, str | None], errcode: int
) -> None:
    answer = await sign_in(phone, **changed)
    assert answer["errcode"] == errcode
    assert set(answer) == {"errcode", "errmsg"}
    assert ", rid: " in answer["errmsg"]


async def test_a_once_code_signs_in_one_of_many_who_try_it_together(phone: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(*(sign_in(phone, js_code="once-a") for _ in range(10)))
    assert sorted(answer.get("errcode", 0) for answer in answers) == [0] + [40163] * 9


async def test_a_longest_name_signs_in(phone: httpx2.AsyncClient) -> None:
    code = "demo-" + "A.z_9-" * 10 + "abcd"
    assert (await sign_in(phone, js_code=code))["openid"] == code


async def test_the_token_stays_the_same_until_its_last_five_minutes(phone: httpx2.AsyncClient, clock: Clock) -> None:
    first = await token(phone)
    assert first["expires_in"] == TOKEN_SECONDS
    clock.now_s += TOKEN_SECONDS - OVERLAP_SECONDS - 1
    same = await token(phone)
    assert (same["access_token"], same["expires_in"]) == (first["access_token"], OVERLAP_SECONDS + 1)
    clock.now_s += 1
    following = await token(phone)
    assert following["access_token"] != first["access_token"]
    assert await send(phone, first["access_token"]) == await send(phone, following["access_token"]) == 0
    clock.now_s += OVERLAP_SECONDS
    assert await send(phone, first["access_token"]) == 42001
    assert await send(phone, following["access_token"]) == 0


async def test_force_kills_the_old_token_but_not_twice_in_thirty_seconds(
    phone: httpx2.AsyncClient, clock: Clock
) -> None:
    first = (await token(phone))["access_token"]
    second = (await token(phone, force_refresh=True))["access_token"]
    assert await send(phone, first) == 40001
    assert await send(phone, second) == 0
    clock.now_s += 29
    assert (await token(phone, force_refresh=True))["access_token"] == second
    clock.now_s += 1
    assert (await token(phone, force_refresh=True))["access_token"] != second


@pytest.mark.parametrize(
    ("changed", "errcode"),
    [
        ({"appid": ""}, 41002),
        ({"secret": 7}, 41004),
        ({"appid": "wx-other"}, 40013),
        ({"secret": "other"}, 40125),
        ({"grant_type": "password"}, 40002),
    ],
)
async def test_a_token_is_not_given_to_others(
    phone: httpx2.AsyncClient, changed: dict[str, object], errcode: int
) -> None:
    assert (await token(phone, **changed))["errcode"] == errcode


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 60_000, b" " * 70_000])
async def test_a_body_that_is_no_object_is_a_format_error(phone: httpx2.AsyncClient, body: bytes) -> None:
    answer = await phone.post("/cgi-bin/stable_token", content=body)
    assert (answer.status_code, answer.json()["errcode"]) == (200, 47001)


@pytest.mark.parametrize(
    ("changed", "errcode"),
    [
        ({"touser": "nobody"}, 40003),
        ({"touser": "fail-43101"}, 43101),
        ({"template_id": ""}, 40037),
        ({"data": {}}, 47003),
        ({"data": "x"}, 47003),
    ],
)
async def test_a_wrong_message_is_refused(phone: httpx2.AsyncClient, changed: dict[str, object], errcode: int) -> None:
    good = (await token(phone))["access_token"]
    assert await send(phone, good, **changed) == errcode


async def test_a_message_without_a_good_token_is_refused(phone: httpx2.AsyncClient) -> None:
    assert await send(phone, "") == 41001
    assert await send(phone, "invented") == 40001
