"""Guessing codes and tokens: so many tries for each, over all processes, whatever address is claimed."""

import asyncio
import re
from collections.abc import Generator, Sequence
from typing import Final

import httpx2
import pytest

from app.core.embedded import Engines
from app.core.ids import new_id
from app.core.settings import Settings
from app.core.web import limits
from app.main import create_app
from tests.conftest import make_settings, serving
from tests.contract.line import connected, message
from tests.races.servers import serving_processes

pytestmark = pytest.mark.anyio

TRIES: Final = 120
QUOTA: Final = 30
WINDOW_SECONDS: Final = 60.0
PATIENCE_SECONDS: Final = 60.0


@pytest.fixture(scope="module")
def strict(database_url: str, engines: Engines, fake_wechat_url: str) -> Settings:
    return make_settings(database_url, engines.redis_url, fake_wechat_url).model_copy(
        update={"sign_in_limit_per_minute": QUOTA, "invitation_limit_per_minute": QUOTA, "rate_limit_per_minute": QUOTA}
    )


@pytest.fixture(scope="module")
def processes(strict: Settings) -> Generator[Sequence[str]]:
    with serving_processes(strict, count=2) as servers:
        yield [server.address for server in servers]


async def tried(
    addresses: Sequence[str], path: str, body: object, headers: dict[str, str]
) -> tuple[list[httpx2.Response], int]:
    """Send the same many times at once, to all processes in turn.

    Returns the answers, and how many may have got through: the quota, and what came back of it meanwhile.
    """
    async with httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as client:
        started_at = asyncio.get_running_loop().time()
        answers = await asyncio.gather(
            *(
                client.post(addresses[number % len(addresses)] + path, json=body, headers=headers)
                for number in range(TRIES)
            )
        )
        taken_seconds = asyncio.get_running_loop().time() - started_at
    return answers, QUOTA + 1 + int(taken_seconds * QUOTA / WINDOW_SECONDS)


def through(answers: Sequence[httpx2.Response]) -> list[httpx2.Response]:
    """Return the answers of those who got through; all others must have heard 429, and when to come again."""
    for answer in answers:
        assert "RateLimit" in answer.headers, "Redis was not asked"
        if answer.status_code == 429:
            assert answer.json()["code"] == "rate_limited"
            assert int(answer.headers["Retry-After"]) >= 1
    return [answer for answer in answers if answer.status_code != 429]


async def signed_in(address: str) -> dict[str, str]:
    # From an address of its own, so that the limit of sign-ins is none of this test's business.
    headers = {"x-forwarded-for": f"203.0.113.{new_id().int % 250}"}
    async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_SECONDS) as client:
        answer = await client.post("/v1/auth/wechat", json={"code": f"demo-{new_id().hex}"}, headers=headers)
    assert answer.is_success, answer.text
    return {"authorization": f"Bearer {answer.json()['access_token']}"}


async def test_sign_ins_of_one_address_are_counted_over_all_processes(processes: Sequence[str], redis_url: str) -> None:
    assert redis_url
    answers, most = await tried(processes, "/v1/auth/wechat", {"code": "guessed-0001"}, {})
    found = through(answers)
    assert QUOTA <= len(found) <= most
    assert {answer.json()["code"] for answer in found} == {"wechat_code_invalid"}


async def test_who_guesses_invitations_is_stopped_over_all_processes_and_may_do_the_rest(
    processes: Sequence[str], redis_url: str
) -> None:
    assert redis_url
    headers = await signed_in(processes[0])
    body = {
        "token": "guessed-guessed-guessed-guessed-",
        "relation": "child",
        "consent": {"version": "1", "purposes": ["booking"]},
    }
    answers, most = await tried(processes, "/v1/me/invitations/accept", body, headers)
    found = through(answers)
    assert QUOTA <= len(found) <= most
    assert {answer.json()["code"] for answer in found} == {"not_found"}
    async with httpx2.AsyncClient(base_url=processes[1], timeout=PATIENCE_SECONDS) as client:
        assert (await client.get("/v1/me/people", headers=headers)).status_code == 200
        # And another account at the same address is not concerned.
        other = await signed_in(processes[0])
        assert (await client.post("/v1/me/invitations/accept", json=body, headers=other)).status_code == 404


async def test_refresh_tokens_are_guessed_ten_quotas_a_minute_from_one_address(
    processes: Sequence[str], redis_url: str
) -> None:
    assert redis_url
    async with httpx2.AsyncClient(base_url=processes[0], timeout=PATIENCE_SECONDS) as client:
        answer = await client.post("/v1/auth/refresh", json={"refresh_token": "guessed"})
    assert answer.headers["RateLimit-Policy"] == f'"address";q={10 * QUOTA};w=60'


# --- whose word about an address is taken ---------------------------------------------------------------------------


@pytest.fixture
def nothing_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a bucket refill over a day: by default one request comes back every 0.2 s, while a test still counts."""
    monkeypatch.setattr(limits, "WINDOW_SECONDS", 24 * 3600)


async def remaining(client: httpx2.AsyncClient, *forwarded: str) -> int:
    """Return how many requests the address has left by which this one is counted."""
    headers = [("x-forwarded-for", value) for value in forwarded]
    answer = await client.get("/v1/units", headers=headers)
    (left,) = re.findall(r";r=(\d+)", answer.headers["RateLimit"])
    return int(left)


@pytest.mark.usefixtures("nothing_comes_back")
@pytest.mark.parametrize("allowed", [None, "192.0.2.1"])
async def test_who_is_no_proxy_of_ours_cannot_choose_an_address(
    strict: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch, allowed: str | None
) -> None:
    assert redis_url
    if allowed is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", allowed)
    with serving(lambda: create_app(strict)) as address:
        async with httpx2.AsyncClient(base_url=address) as client:
            first = await remaining(client, "203.0.113.1")
            second = await remaining(client, "203.0.113.2")
    # By default whoever calls from this machine is taken for the proxy; once that is named, nobody else is.
    assert (second < first) is (allowed is not None)


@pytest.mark.usefixtures("nothing_comes_back")
async def test_behind_a_proxy_what_a_phone_says_of_its_own_address_is_not_believed(
    strict: Settings, redis_url: str
) -> None:
    assert redis_url
    with serving(lambda: create_app(strict)) as address:
        async with httpx2.AsyncClient(base_url=address) as client:
            # The last address is the one that the proxy has seen; those in front are the phone's own words.
            counts = [
                await remaining(client, "203.0.113.9"),
                await remaining(client, "198.51.100.1, 203.0.113.9"),
                await remaining(client, "198.51.100.2", "203.0.113.9"),
                await remaining(client, "127.0.0.1, 203.0.113.9"),
            ]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == len(counts)


@pytest.mark.usefixtures("nothing_comes_back")
async def test_no_address_is_named_behind_a_body(strict: Settings, redis_url: str) -> None:
    assert redis_url
    with serving(lambda: create_app(strict)) as address:
        async with connected(address) as line:
            counts = list[int]()
            for number in range(3):
                behind = f"2\r\n{{}}\r\n0\r\nx-forwarded-for: 198.51.100.{number}\r\n\r\n".encode()
                headers = {"x-forwarded-for": "203.0.113.9", "transfer-encoding": "chunked"}
                heard = await line.ask(message("GET", "/v1/units", behind, headers))
                (left,) = re.findall(r";r=(\d+)", heard.headers["ratelimit"])
                counts.append(int(left))
    assert counts == list(range(counts[0], counts[0] - 3, -1))
