"""One connection and many requests: the order of the answers, and what cuts it short. Carried in both ways."""

from typing import Final

import asyncpg
import pytest

from app.booking.gate.passes import PassSigner
from app.core.web.protocol import AHEAD_LIMIT, HEAD_LIMIT_BYTES
from tests.booking.gate.builders import MadeRelease, Phone, held
from tests.booking.gate.locks import no_commit_of, until_gates_wait
from tests.booking.gate.waits import until
from tests.contract.line import Line, chunked, claim_message, connected, message

pytestmark = pytest.mark.anyio

# As many as may wait for the answer to another, and that one.
BURST: Final = AHEAD_LIMIT + 1


@pytest.fixture
def phone(signer: PassSigner, made: MadeRelease) -> Phone:
    return Phone.with_pass(signer, made)


def _poll(made: MadeRelease) -> str:
    return f"/v1/releases/{made.release_id}/availability"


def _mixed(phone: Phone) -> list[tuple[bytes, int]]:
    """Return requests for the gate and for the API, plain ones and others, each with its status."""
    claim, poll = phone.claim(), _poll(phone.made)
    in_chunks = phone.headers | {"transfer-encoding": "chunked"}
    told: list[tuple[str, str, bytes | None, dict[str, str], int]] = [
        ("GET", poll, None, {}, 200),
        ("PUT", claim.path, claim.body, phone.headers, 201),
        ("POST", claim.path, claim.body, phone.headers, 405),
        ("GET", "/v1/time", None, {}, 200),
        ("PUT", claim.path, claim.body, phone.headers, 200),
        ("PUT", claim.path, claim.body, {}, 415),
        ("GET", "/v1/nothing", None, {}, 404),
        ("PUT", claim.path, chunked(claim.body, 100), in_chunks, 200),
        ("PUT", claim.path + "?a=b", claim.body, phone.headers, 200),
        ("GET", poll, None, {"if-none-match": "*"}, 304),
        ("GET", claim.path, None, phone.headers, 200),
        ("PUT", claim.path, b"{", phone.headers, 400),
    ]
    return [
        (message(method, path, body, {**headers, "x-request-id": f"request-{index}"}), status)
        for index, (method, path, body, headers, status) in enumerate(told)
    ]


@pytest.mark.parametrize("piece_bytes", [1, 7, 250, 1_000_000])
async def test_answers_leave_in_the_order_of_their_requests_however_those_arrive(
    line: Line, phone: Phone, piece_bytes: int
) -> None:
    mixed = _mixed(phone)
    await line.send_in_pieces(b"".join(sent for sent, _ in mixed), piece_bytes)
    heard = [await line.hear() for _ in mixed]
    assert [answer.headers["x-request-id"] for answer in heard] == [f"request-{index}" for index in range(len(mixed))]
    assert [answer.status for answer in heard] == [status for _, status in mixed]
    # And nothing besides them: what is asked next is answered next.
    assert (await line.ask(claim_message(phone, x_request_id="the-last"))).headers["x-request-id"] == "the-last"


async def test_a_connection_serves_one_request_after_the_other(line: Line, phone: Phone) -> None:
    for sent, status in _mixed(phone):
        heard = await line.ask(sent)
        assert heard.status == status
        assert "connection" not in heard.headers


async def test_claims_sent_in_one_packet_are_answered_each_in_its_place(
    line: Line, signer: PassSigner, made: MadeRelease, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    phones = [Phone.with_pass(signer, made) for _ in range(BURST)]
    claims = [phone.claim() for phone in phones]
    line.send(*(claim_message(phone, claim) for phone, claim in zip(phones, claims, strict=True)))
    heard = [await line.hear() for _ in phones]
    assert [answer.said["claim"] for answer in heard] == [claim.path.rpartition("/")[2] for claim in claims]
    assert [answer.status for answer in heard] == [201] * BURST
    assert len(await held(db, made)) == BURST


async def test_a_body_that_reads_like_a_claim_is_the_body_that_it_was_said_to_be(
    line: Line, phone: Phone, signer: PassSigner, made: MadeRelease, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    inner = claim_message(Phone.with_pass(signer, made))
    # A head that is longer than the body, so that the body is a piece of its own, and whole.
    outer = message("PUT", phone.claim().path, inner, phone.headers | {"x-more": "a" * len(inner)})
    await line.send_in_pieces(outer, len(outer) - len(inner))
    assert (await line.hear()).word == "malformed_json"
    assert await held(db, made) == []
    assert (await line.ask(claim_message(phone))).status == 201


async def test_a_header_that_goes_on_like_a_claim_is_no_claim(
    line: Line, phone: Phone, made: MadeRelease, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    started = b"GET /v1/time HTTP/1.1\r\nx-more: " + b"a" * 2_000
    await line.send_in_pieces(started + claim_message(phone), len(started))
    # Its other headers, with the length of the body, end the head that was begun.
    assert "now_ms" in (await line.hear()).said
    assert await held(db, made) == []
    assert (await line.ask(claim_message(phone))).status == 201


async def test_a_claim_that_came_by_itself_is_answered_after_those_before_it(
    line: Line, signer: PassSigner, made: MadeRelease, database_url: str, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    first, second = (Phone.with_pass(signer, made) for _ in range(2))
    async with no_commit_of(database_url, made):
        line.send(claim_message(first, x_request_id="the-first"))
        await until_gates_wait(db)
        # Refused at once, were it alone.
        line.send(message("PUT", second.claim().path, b"{", second.headers | {"x-request-id": "the-second"}))
    heard = [await line.hear() for _ in range(2)]
    assert [(one.status, one.headers["x-request-id"]) for one in heard] == [(201, "the-first"), (400, "the-second")]


async def test_polls_are_answered_alike_however_they_are_written(line: Line, made: MadeRelease) -> None:
    poll = _poll(made)
    first = await line.ask(message("GET", poll))
    capitals = poll.replace(str(made.release_id), str(made.release_id).upper())
    for sent in (message("GET", poll), message("GET", capitals), message("GET", poll, b"{}")):
        heard = await line.ask(sent)
        assert (heard.status, heard.headers["etag"]) == (200, first.headers["etag"])
        assert heard.said["pools"] == first.said["pools"]
    # Its page is the API's.
    assert (await line.ask(message("GET", f"/v1/releases/{made.release_id}"))).said["id"] == str(made.release_id)
    for other in (poll + "/more", poll + "s", poll.replace("-", "/", 1)):
        assert (await line.ask(message("GET", other))).status == 404
    unchanged = message("GET", poll, headers={"if-none-match": first.headers["etag"]})
    assert (await line.ask(unchanged)).status == 304


async def test_many_requests_in_one_piece_are_not_one_head_that_is_too_long(line: Line, phone: Phone) -> None:
    poll = message("GET", _poll(phone.made), headers={"x-more": "a" * 10_000})
    together = poll * AHEAD_LIMIT
    # The last of them begins beyond the limit of a head, and ends in the next piece.
    assert len(together) > 2 * HEAD_LIMIT_BYTES
    line.send(together[:-1_000])
    assert [(await line.hear()).status for _ in range(AHEAD_LIMIT - 1)] == [200] * (AHEAD_LIMIT - 1)
    line.send(together[-1_000:])
    assert (await line.hear()).status == 200


async def test_an_answer_to_head_has_no_body_and_the_next_answer_follows_at_once(line: Line, phone: Phone) -> None:
    line.send(message("HEAD", _poll(phone.made)), claim_message(phone))
    assert (await line.hear(to_head=True)).status == 200
    assert (await line.hear()).status == 201


@pytest.mark.parametrize(("version", "headers"), [("1.1", {"connection": "close"}), ("1.0", {})])
async def test_whoever_asks_for_it_is_hung_up_on_after_the_answer(
    line: Line, phone: Phone, version: str, headers: dict[str, str]
) -> None:
    claim = phone.claim()
    heard = await line.ask(message("PUT", claim.path, claim.body, phone.headers | headers, version=version))
    assert (heard.status, heard.headers["connection"]) == (201, "close")
    assert await line.hear_the_end() == b""


async def test_what_follows_a_last_request_is_not_done(
    address: str, line: Line, phone: Phone, signer: PassSigner, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    claim = phone.claim()
    # Refused at once; and the last here, whatever it asks for: the answer to HTTP/1.0 says so.
    last = message("POST", claim.path, headers={"connection": "keep-alive"}, version="1.0")
    line.send(last, claim_message(phone, claim))
    assert (await line.hear()).headers["connection"] == "close"
    assert await line.hear_the_end() == b""
    async with connected(address) as other:
        # Sent after it, and confirmed: by now the one that followed would be, too.
        assert (await other.ask(claim_message(Phone.with_pass(signer, phone.made)))).status == 201
    assert await held(db, phone.made) == [(0, 1)]


async def test_what_is_no_http_waits_for_the_answers_before_it(
    line: Line, phone: Phone, database_url: str, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with no_commit_of(database_url, phone.made):
        line.send(claim_message(phone, x_request_id="before-it"), b"NOISE\r\n\r\n")
        await until_gates_wait(db)
        line.send(b"more of it")
    heard = await line.hear()
    # Taken for the answer to the claim, "400" would be a lie.
    assert (heard.status, heard.headers["x-request-id"]) == (201, "before-it")
    assert heard.headers["connection"] == "close"
    assert await line.hear_the_end() == b""


async def test_what_is_no_http_at_all_is_told(line: Line, phone: Phone) -> None:
    assert (await line.ask(claim_message(phone))).status == 201
    heard = await line.ask(b"NOISE\r\n\r\n")
    assert (heard.status, heard.word) == (400, "malformed_http")
    assert await line.hear_the_end() == b""


@pytest.mark.parametrize("missing_bytes", [1, 100, 500])
async def test_a_claim_that_is_cut_off_in_the_middle_is_none(
    address: str, line: Line, phone: Phone, db: "asyncpg.Connection[asyncpg.Record]", missing_bytes: int
) -> None:
    claim = phone.claim()
    async with connected(address) as cut:
        cut.send(claim_message(phone, claim)[:-missing_bytes])
        assert await cut.says_nothing_for(0.2)
        cut.hang_up()
    assert (await line.ask(message("GET", claim.path, headers=phone.headers))).status == 404
    assert await held(db, phone.made) == []
    assert (await line.ask(claim_message(phone, claim))).status == 201


@pytest.mark.parametrize("more", [0, 1, 2])
async def test_a_phone_that_hangs_up_finds_its_place_when_it_asks_again(
    address: str, phone: Phone, database_url: str, db: "asyncpg.Connection[asyncpg.Record]", more: int
) -> None:
    """Whatever it has sent ahead of the answer that it did not wait for."""
    claim = phone.claim()
    async with connected(address) as lost:
        async with no_commit_of(database_url, phone.made):
            lost.send(claim_message(phone, claim), message("GET", "/v1/time") * more)
            await until_gates_wait(db)
            lost.hang_up()

        async def written() -> bool:
            return await held(db, phone.made) == [(0, 1)]

        await until(written)
    async with connected(address) as line:
        assert (await line.ask(claim_message(phone, claim))).status == 200
