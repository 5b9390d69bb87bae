"""A link tells each who asks the reply to their own question, or that it is not known; and closes with the gate."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.booking.gate.link import Argument, Link, Links, Script, _identity_in
from app.core.outages import Engine, engine_of
from app.core.settings import Settings
from tests.booking.gate.agreement import command
from tests.booking.gate.waits import PATIENCE_SECONDS
from tests.relay import Relay, relaying

pytestmark = pytest.mark.anyio

_TIMEOUT_MS = 300


class _OwnScript(Script):
    """A script that no server knows yet."""

    def __init__(self) -> None:
        super().__init__("claim")
        self.source = b"return ARGV[1]"
        self.sha = "0" * 40


@asynccontextmanager
async def _behind_a_relay(settings: Settings, tmp_path: Path, **changes: object) -> AsyncGenerator[tuple[Links, Relay]]:
    socket_path = tmp_path / "valkey.sock"
    target = Path(urlsplit(settings.redis_url.get_secret_value()).path)
    async with relaying(socket_path, target) as relay:
        links = Links(settings.model_copy(update={"redis_url": SecretStr(f"unix://{socket_path}"), **changes}), 1)
        try:
            yield links, relay
        finally:
            await links.close()


def _posted(link: Link, *calls: Sequence[Sequence[Argument]]) -> "list[asyncio.Future[list[Any]]]":
    return [cast("asyncio.Future[list[Any]]", link.post(call)) for call in calls]


async def _told(*calls: "asyncio.Future[list[Any]]") -> list[Any]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await asyncio.gather(*calls, return_exceptions=True)


def _kinds(told: list[Any]) -> list[type]:
    return [type(one) for one in told]


async def test_after_closing_no_connection_is_made(settings: Settings) -> None:
    links = Links(settings, 1)
    async with links.lend() as link:
        assert link.identity
    await links.claims.connect()
    assert links.claims.is_up
    await links.close()
    with pytest.raises(RedisConnectionError):
        async with links.lend():
            pass
    with pytest.raises(RedisConnectionError):
        await links.claims.connect()
    assert (link.identity, links.claims.identity) == ("", "")
    assert not links.claims.is_up


async def test_who_gets_no_link_in_time_hears_that_redis_is_the_trouble(settings: Settings) -> None:
    links = Links(settings.model_copy(update={"redis_timeout_ms": 50}), 1)
    async with links.lend():
        with pytest.raises(RedisTimeoutError, match="no link") as caught:
            async with links.lend():
                pass
    assert engine_of(caught.value) is Engine.REDIS
    await links.close()


async def test_a_connection_made_while_closing_is_closed_at_its_return(settings: Settings) -> None:
    links = Links(settings, 1)
    async with links.lend() as link:
        await links.close()
        await link.connect()
        assert link.identity
    assert not link.identity


async def test_a_connection_of_the_claims_that_is_made_while_closing_is_closed(settings: Settings) -> None:
    links = Links(settings, 1)
    connecting = asyncio.create_task(links.claims.connect())
    await asyncio.sleep(0)
    await links.close()
    await asyncio.wait([connecting])
    assert not links.claims.is_up


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5, 17, 4_096])
async def test_each_hears_the_reply_to_their_own_question_however_the_replies_arrive(
    settings: Settings, tmp_path: Path, piece_bytes: int
) -> None:
    async with _behind_a_relay(settings, tmp_path) as (links, relay):
        link = links.claims
        await link.connect()
        relay.answers.piece_bytes = piece_bytes
        calls = _posted(
            link,
            [["SET", "a", b"\r\n$-1\r\n"], ["GET", "a"]],
            [["GET", "nothing"]],
            [["HSET", "h", "f", "v", b"\xff", 2], ["HGETALL", "h"], ["INCR", "h"]],
            [["EVAL", "return {1, {'two', false}, 'three'}", 0]],
            *([["ECHO", f"question {n}" * 50]] for n in range(20)),
        )
        first, second, third, fourth, *echoes = await _told(*calls)
        assert first == [b"OK", b"\r\n$-1\r\n"]
        assert second == [None]
        assert third[:2] == [2, {b"f": b"v", b"\xff": b"2"}]
        # An error is the reply to one command, and nobody else's.
        assert isinstance(third[2], ResponseError)
        assert fourth == [[1, [b"two", None], b"three"]]
        assert echoes == [[f"question {n}".encode() * 50] for n in range(20)]
        assert link.is_up


async def test_a_lost_connection_fails_everybody_who_waits_and_the_next_question_is_asked_anew(
    settings: Settings, tmp_path: Path
) -> None:
    async with _behind_a_relay(settings, tmp_path) as (links, relay):
        link = links.claims
        await link.connect()
        relay.answers.swallows = True
        calls = _posted(link, *([["ECHO", str(n)]] for n in range(3)))
        await relay.answers.swallowed.wait()
        relay.answers.swallows = False
        relay.cut()
        assert _kinds(await _told(*calls)) == [RedisConnectionError] * 3
        assert not link.is_up
        with pytest.raises(RedisConnectionError):
            link.post([["PING"]])
        assert await link.commands([["ECHO", "again"]]) == [b"again"]
        assert link.identity


async def test_one_reply_that_does_not_come_in_time_breaks_the_link_for_those_behind_it_too(
    settings: Settings, tmp_path: Path
) -> None:
    async with _behind_a_relay(settings, tmp_path, redis_timeout_ms=_TIMEOUT_MS) as (links, relay):
        link = links.claims
        await link.connect()
        relay.answers.swallows = True
        early = _posted(link, [["ECHO", "early"]])
        await asyncio.sleep(_TIMEOUT_MS / 2_000)
        late = _posted(link, [["ECHO", "late"]])
        assert _kinds(await _told(*early)) == [RedisTimeoutError]
        # Its own time is not over, but a reply that came now could be that to the question before.
        relay.answers.swallows = False
        assert _kinds(await _told(*late)) == [RedisConnectionError]
        assert await link.commands([["ECHO", "again"]]) == [b"again"]


async def test_whoever_waits_no_longer_leaves_the_others_their_own_replies(settings: Settings, tmp_path: Path) -> None:
    async with _behind_a_relay(settings, tmp_path) as (links, _):
        link = links.claims
        await link.connect()
        calls = _posted(link, *([["ECHO", str(n)]] for n in range(3)))
        calls[1].cancel()
        assert await _told(calls[0], calls[2]) == [[b"0"], [b"2"]]


@pytest.mark.parametrize("surprise", [b"+nobody asked\r\n", b"this is no reply\r\n", b"$5\r\nab\r\nc+OK\r\n"])
async def test_a_link_that_hears_what_nobody_asked_for_is_broken(
    settings: Settings, tmp_path: Path, surprise: bytes
) -> None:
    async with _behind_a_relay(settings, tmp_path) as (links, relay):
        link = links.claims
        await link.connect()
        relay.say(surprise)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while link.is_up:  # noqa: ASYNC110 - what is awaited happens at the other end
                await asyncio.sleep(0.005)
        assert await link.commands([["ECHO", "again"]]) == [b"again"]


async def test_news_that_a_server_pushes_is_nobodys_reply(settings: Settings, redis: Redis) -> None:
    links = Links(settings, 1)
    try:
        link = links.claims
        await link.connect()
        wire = link._wire
        assert await link.commands([["CLIENT", "TRACKING", "ON"], ["GET", "watched"]]) == [b"OK", None]
        for n in range(3):
            # That what was read has changed is told before the next reply, or between two.
            await command(redis, "SET", "watched", n)
            assert await link.commands([["ECHO", "x"], ["GET", "watched"]]) == [b"x", str(n).encode()]
        assert link._wire is wire
    finally:
        await links.close()


async def test_what_cannot_be_written_is_not_waited_for(settings: Settings) -> None:
    links = Links(settings, 1)
    try:
        link = links.claims
        await link.connect()
        with pytest.raises(TypeError):
            link.post([["ECHO", "fine"], ["ECHO", cast("str", None)]])
        assert await link.commands([["ECHO", "next"]]) == [b"next"]
    finally:
        await links.close()


async def test_a_server_that_does_not_know_a_script_costs_nobody_else_the_link(settings: Settings) -> None:
    links = Links(settings, 1)
    try:
        link = links.claims
        await link.connect()
        identity = link.identity
        script = _OwnScript()
        with pytest.raises(NoScriptError):
            await link.commands([script.call([], [b"x"])])
        calls = _posted(link, [script.call([], [b"x"])], [["ECHO", "behind it"]])
        (unknown,), behind = await _told(*calls)
        assert isinstance(unknown, NoScriptError)
        assert behind == [b"behind it"]
        assert (link.is_up, link.identity) == (True, identity)
    finally:
        await links.close()


async def test_after_any_other_error_whoever_answers_is_looked_at_anew(settings: Settings, redis: Redis) -> None:
    links = Links(settings, 1)
    try:
        async with links.lend() as link:
            await command(redis, "SET", "text", "x")
            with pytest.raises(ResponseError):
                await link.commands([["INCR", "text"]])
            assert not link.is_up
            assert not link.identity
    finally:
        await links.close()


async def test_no_failure_is_left_unheard(settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with _behind_a_relay(settings, tmp_path) as (links, relay):
        link = links.claims
        await link.connect()
        relay.answers.swallows = True
        asking = [asyncio.create_task(link.commands([["PING"]])) for _ in range(3)]
        await relay.answers.swallowed.wait()
        asking[0].cancel()
        told = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, RedisError | asyncio.CancelledError) for one in told)
        relay.answers.swallows = False
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("info", ["", "role:master", b"run_id:a\r\nrole:master\r\n", "run_id:a\nmaster_replid:b"])
def test_a_server_that_does_not_say_who_it_is_counts_as_away(info: bytes | str) -> None:
    with pytest.raises(RedisConnectionError, match="does not say who it is: its INFO has no "):
        _identity_in(info)
