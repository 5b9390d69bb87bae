"""How long a connection stays open, and what a phone that reads nothing costs. Carried in both ways."""

import asyncio
import re
from collections.abc import AsyncGenerator, Generator
from functools import partial
from typing import cast

import asyncpg
import pytest
from fastapi import FastAPI

from app.booking.gate.desk import Desk, Reply, Request
from app.booking.gate.passes import PassSigner
from app.core.settings import Settings
from app.core.web.protocol import AHEAD_LIMIT
from app.main import create_api, with_gate_in_front
from tests.booking.gate.builders import MadeRelease, Phone, make_release
from tests.booking.gate.locks import no_commit_of, until_gates_wait
from tests.booking.gate.waits import until
from tests.conftest import serving
from tests.contract.conftest import CARRIERS
from tests.contract.line import Line, claim_message, connected, message
from tests.numbers import rises

pytestmark = pytest.mark.anyio

KEEP_ALIVE_SECONDS = 1
# Past the time-out, and well before a winner's phone is told to ask again.
LONGER_SECONDS = 1.6
UNREAD = 1_500


@pytest.fixture
def served_api(settings: Settings) -> FastAPI:
    return create_api(settings)


@pytest.fixture(params=CARRIERS)
def address(request: pytest.FixtureRequest, served_api: FastAPI, settings: Settings) -> Generator[str]:
    """Serve with little patience."""
    with serving(
        lambda: with_gate_in_front(served_api, settings),
        carrier=CARRIERS[request.param],
        keep_alive_seconds=KEEP_ALIVE_SECONDS,
    ) as served_at:
        yield served_at


@pytest.fixture
async def line(address: str) -> AsyncGenerator[Line]:
    async with connected(address) as phone_line:
        yield phone_line


def _poll(made: MadeRelease) -> bytes:
    return message("GET", f"/v1/releases/{made.release_id}/availability")


async def test_an_idle_connection_is_closed_and_one_that_is_used_is_not(
    line: Line, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    poll = _poll(await make_release(db))
    for _ in range(5):
        assert (await line.ask(poll)).status == 200
        assert await line.says_nothing_for(KEEP_ALIVE_SECONDS / 2)
    async with asyncio.timeout(10 * KEEP_ALIVE_SECONDS):
        assert await line.hear_the_end() == b""


async def test_a_connection_is_idle_after_the_last_answer_and_not_after_the_first(
    line: Line, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Whether the gate gave it or the API."""
    poll, time = _poll(await make_release(db)), message("GET", "/v1/time")
    for sent in (poll, time, poll, time):
        assert (await line.ask(sent)).status == 200
        assert await line.says_nothing_for(KEEP_ALIVE_SECONDS * 0.7)
    assert (await line.ask(poll)).status == 200


async def test_a_connection_whose_request_is_still_to_be_answered_is_not_idle(
    line: Line, db: "asyncpg.Connection[asyncpg.Record]", database_url: str, signer: PassSigner
) -> None:
    first, second = await make_release(db), await make_release(db)
    phones = [Phone.with_pass(signer, made) for made in (first, second)]
    messages = [claim_message(phone) for phone in phones]
    for made in (first, second):
        assert (await line.ask(_poll(made))).status == 200
    async with no_commit_of(database_url, second):
        async with no_commit_of(database_url, first):
            # The head of the second begins to arrive before the first is answered.
            line.send(messages[0], messages[1][:20])
            await until_gates_wait(db)
        assert (await line.hear()).status == 201
        line.send(messages[1][20:])
        assert await line.says_nothing_for(LONGER_SECONDS)
    assert (await line.hear()).status == 201


HALF_A_CLAIM = b"PUT /v1/claims/0197a3c0-1c00-7000-8000-0000000000c1 HTTP/1.1\r\nhost: a\r\n"
HALF_A_SIGN_IN = b"POST /v1/auth/wechat HTTP/1.1\r\nhost: a\r\n"
OF_JSON = b"content-type: application/json\r\n"
AUTHORIZED = b"authorization: Pass a.b\r\n"
# How a request begins that never ends, and whether it had begun at all.
BEGINNINGS = {
    "nothing": (b"", False),
    "an empty line": (b"\r\n", False),
    "a letter": (b"P", True),
    "half an address": (HALF_A_CLAIM[:30], True),
    "half a head": (HALF_A_CLAIM, True),
    "half a body, for the gate": (HALF_A_CLAIM + OF_JSON + AUTHORIZED + b"content-length: 100\r\n\r\n{", True),
    "a head and no body, for the gate": (HALF_A_CLAIM + OF_JSON + AUTHORIZED + b"content-length: 9\r\n\r\n", True),
    "half a body": (HALF_A_SIGN_IN + OF_JSON + b"content-length: 100\r\n\r\n{", True),
    "half a chunk": (HALF_A_SIGN_IN + OF_JSON + b"transfer-encoding: chunked\r\n\r\n5\r\n{", True),
    "no last chunk": (HALF_A_CLAIM + OF_JSON + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", True),
}


# What a connection was used for before: nothing, the API, the gate.
EARLIER = {"": b"", "the API": message("GET", "/v1/time"), "the gate": message("GET", "/v1/claims/x")}


async def _end_of(address: str, sent: bytes, earlier: bytes) -> tuple[list[tuple[bytes, bytes]], float]:
    """Begin a request on a connection; return what is heard until it is hung up on, and after how many seconds."""
    async with connected(address) as line:
        if earlier:
            assert (await line.ask(earlier)).status < 500
        began_at = asyncio.get_running_loop().time()
        line.send(sent)
        heard = await line.hear_the_end()
        return re.findall(rb"HTTP/1.1 (\d+)|\"code\":\"(\w+)\"", heard), asyncio.get_running_loop().time() - began_at


async def test_who_does_not_come_to_the_end_of_a_request_is_hung_up_on(address: str) -> None:
    ways = [(beginning, before) for beginning in BEGINNINGS for before in EARLIER]
    ends = await asyncio.gather(
        *(_end_of(address, BEGINNINGS[beginning][0], EARLIER[before]) for beginning, before in ways)
    )
    for (beginning, before), (heard, after_seconds) in zip(ways, ends, strict=True):
        told = [(b"408", b""), (b"", b"request_timeout")] if BEGINNINGS[beginning][1] else []
        assert heard == told, (beginning, before)
        assert KEEP_ALIVE_SECONDS * 0.9 < after_seconds < 10 * KEEP_ALIVE_SECONDS, (beginning, before)


@pytest.mark.parametrize("beginning", ["half a head", "half a body, for the gate", "half a body"])
async def test_a_request_gets_no_more_time_for_coming_by_and_by(line: Line, beginning: str) -> None:
    line.send(BEGINNINGS[beginning][0])
    answer = asyncio.create_task(line.hear())
    for _ in range(30):
        await asyncio.sleep(KEEP_ALIVE_SECONDS / 10)
        if answer.done():
            break
        line.send(b"a")
    assert answer.done()
    assert (await answer).word == "request_timeout"


async def test_a_request_that_breaks_off_behind_another_takes_nothing_from_that(
    line: Line, db: "asyncpg.Connection[asyncpg.Record]", database_url: str, signer: PassSigner
) -> None:
    phone = Phone.with_pass(signer, made := await make_release(db))
    async with no_commit_of(database_url, made):
        line.send(claim_message(phone), HALF_A_SIGN_IN)
        await until_gates_wait(db)
        assert await line.says_nothing_for(LONGER_SECONDS)
    heard = await line.hear()
    assert (heard.status, heard.headers["connection"]) == (201, "close")
    assert await line.hear_the_end() == b""


async def test_each_request_has_its_own_time(line: Line) -> None:
    """However many came before it on the same connection, the end of one and the beginning of the next together."""
    asked = message("GET", "/v1/time")
    line.send(asked[:20])
    for _ in range(5):
        assert await line.says_nothing_for(KEEP_ALIVE_SECONDS / 2)
        line.send(asked[20:] + asked[:20])
        assert (await line.hear()).status == 200
    line.send(asked[20:])
    assert (await line.hear()).status == 200


async def test_what_a_phone_does_not_read_is_not_piled_up_and_what_was_taken_comes_in_order(
    address: str, served_api: FastAPI, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    # An answer of many pools is some kilobytes long, and the question some bytes.
    made = await make_release(db, capacities=(1,) * 60)
    desk: Desk = served_api.state.desk
    take, taken = desk.take, list[str]()

    def take_and_count(request: Request, reply: Reply) -> None:
        taken.append(request.request_id)
        take(request, reply)

    async with connected(address, reads_little=True) as line:
        length = len((await line.ask(_poll(made))).body)
        desk.take = take_and_count
        ids = [f"request-{n:04}" for n in range(UNREAD)]
        path = f"/v1/releases/{made.release_id}/availability"
        line.send(*(message("GET", path, headers={"x-request-id": id_}) for id_ in ids))
        await asyncio.sleep(LONGER_SECONDS)
        # What the two sockets hold, and no more: the rest has not even been asked.
        assert len(taken) < UNREAD / 2, (len(taken), length)
        heard = [await line.hear()]
        while "connection" not in heard[-1].headers:
            heard.append(await line.hear())
        # Those that waited when there were too many of them were the last.
        assert heard[-1].headers["connection"] == "close"
        assert await line.hear_the_end() == b""
        assert len(taken) == len(heard) < UNREAD
        assert [answer.headers["x-request-id"] for answer in heard] == ids[: len(heard)] == taken
        assert {len(answer.body) for answer in heard} == {length}


@pytest.mark.parametrize("more", [0, 1, 500])
async def test_of_what_is_sent_ahead_of_an_answer_so_many_are_answered_and_then_the_connection_ends(
    more: int, line: Line, db: "asyncpg.Connection[asyncpg.Record]", database_url: str, signer: PassSigner
) -> None:
    phone = Phone.with_pass(signer, made := await make_release(db))
    ids = [f"request-{n:03}" for n in range(AHEAD_LIMIT + more)]
    async with no_commit_of(database_url, made):
        line.send(claim_message(phone), *(message("GET", "/v1/time", headers={"x-request-id": id_}) for id_ in ids))
        await until_gates_wait(db)
    assert (await line.hear()).status == 201
    heard = [await line.hear() for _ in range(AHEAD_LIMIT)]
    assert [answer.headers["x-request-id"] for answer in heard] == ids[:AHEAD_LIMIT]
    if more:
        assert heard[-1].headers["connection"] == "close"
        assert await line.hear_the_end() == b""
    else:
        assert (await line.ask(_poll(made))).status == 200


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS.keys())
async def test_who_opens_one_connection_too_many_is_sent_away_until_another_has_gone(
    carrier: type[asyncio.Protocol], settings: Settings
) -> None:
    bounded = cast("type[asyncio.Protocol]", partial(carrier, connection_limit=3))
    asked = message("GET", "/v1/time")
    with serving(lambda: with_gate_in_front(create_api(settings), settings), carrier=bounded) as address:
        async with connected(address) as first, connected(address) as second, connected(address) as third:
            for line in (first, second, third):
                assert (await line.ask(asked)).status == 200
            with rises("connections_refused", by=1):
                async with connected(address) as fourth:
                    heard = await fourth.hear()
                    assert (heard.status, heard.word, heard.headers["connection"]) == (503, "unavailable", "close")
                    assert int(heard.headers["retry-after"]) >= 1
                    assert await fourth.hear_the_end() == b""
            # Who is in stays in.
            assert (await first.ask(asked)).status == 200

        async def served() -> bool:
            async with connected(address) as line:
                line.send(asked)
                return (await line.hear()).status == 200

        await until(served)
