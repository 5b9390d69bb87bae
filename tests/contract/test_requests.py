"""What a request to the gate may look like, and what it hears: the same, whichever way it is carried."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from app.booking.gate.passes import PassSigner
from app.core.web.protocol import HEAD_LIMIT_BYTES
from tests.booking.gate.builders import MadeRelease, Phone
from tests.contract.line import Heard, Line, chunked, claim_message, message

pytestmark = pytest.mark.anyio

COMMON: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
OF_A_PROBLEM: Final = {"content-type": "application/problem+json", "vary": "Accept-Language"}
BODY_LIMIT_BYTES: Final = 65_536


@pytest.fixture
def phone(signer: PassSigner, made: MadeRelease) -> Phone:
    return Phone.with_pass(signer, made)


def assert_headers(heard: Heard, **own: str | None) -> None:
    """Demand exactly the headers of every answer and these (names with `_` for `-`; None stands for any value)."""
    wanted: dict[str, str | None] = {**COMMON, "date": None, "x-request-id": None}
    wanted |= {name.replace("_", "-"): value for name, value in own.items()}
    if heard.status != 304:
        wanted["content-length"] = str(len(heard.body))
    assert heard.headers.keys() == wanted.keys()
    assert {name: heard.headers[name] for name, value in wanted.items() if value} == {
        name: value for name, value in wanted.items() if value
    }


def assert_refused(heard: Heard, status: int, word: str, **own: str | None) -> dict[str, Any]:
    """Demand a whole problem, in English unless told, and return it."""
    assert (heard.status, heard.word) == (status, word), heard
    assert_headers(heard, **{name.replace("-", "_"): value for name, value in OF_A_PROBLEM.items()}, **own)
    said = heard.said
    assert said["status"] == status
    assert said["type"] == f"/docs/errors#{word}"
    assert said["request_id"] == heard.headers["x-request-id"]
    return said


async def test_a_claim_is_confirmed_once_and_known_from_then_on(line: Line, phone: Phone) -> None:
    claim = phone.claim()
    first = await line.ask(claim_message(phone, claim))
    again = await line.ask(claim_message(phone, claim))
    path = claim.path
    asked = await line.ask(message("GET", path, headers=phone.headers))
    head = await line.ask(message("HEAD", path, headers=phone.headers), to_head=True)
    assert [first.status, again.status, asked.status, head.status] == [201, 200, 200, 200]
    assert first.word == "confirmed"
    assert first.body == again.body == asked.body
    for heard in (first, again, asked):
        assert_headers(heard, content_type="application/json")
    # To HEAD everything is told but the body.
    assert head.headers | {"date": "", "x-request-id": ""} == asked.headers | {"date": "", "x-request-id": ""}


@pytest.mark.parametrize("piece_bytes", [1, 50, 400])
async def test_a_claim_that_comes_slowly_and_in_pieces_is_confirmed(line: Line, phone: Phone, piece_bytes: int) -> None:
    await line.send_in_pieces(claim_message(phone), piece_bytes)
    heard = await line.hear()
    assert (heard.status, heard.word) == (201, "confirmed")


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1_000])
async def test_a_claim_in_chunks_is_confirmed(line: Line, phone: Phone, chunk_bytes: int) -> None:
    claim = phone.claim()
    headers = phone.headers | {"transfer-encoding": "chunked"}
    sent = message("PUT", claim.path, chunked(claim.body, chunk_bytes), headers)
    assert (await line.ask(sent)).status == 201
    # And the connection goes on where the chunks end.
    assert (await line.ask(claim_message(phone, claim))).status == 200


@pytest.mark.parametrize("is_announced", [False, True])
async def test_a_body_over_the_limit_is_refused_and_one_at_the_limit_is_read(
    line: Line, phone: Phone, *, is_announced: bool
) -> None:
    claim = phone.claim()
    for size, status in ((BODY_LIMIT_BYTES, 201), (BODY_LIMIT_BYTES + 1, 413)):
        body = claim.body.ljust(size)
        if is_announced:
            sent = message("PUT", claim.path, body, phone.headers)
        else:
            headers = phone.headers | {"transfer-encoding": "chunked"}
            sent = message("PUT", claim.path, chunked(body, 10_000), headers)
        heard = await line.ask(sent)
        assert heard.status == status
    assert_refused(heard, 413, "body_too_large", content_language="en", connection="close")


async def test_a_body_announced_too_large_is_refused_before_it_is_sent(line: Line, phone: Phone) -> None:
    headers = phone.headers | {"content-length": "9999999"}
    heard = await line.ask(message("PUT", phone.claim().path, headers=headers))
    assert_refused(heard, 413, "body_too_large", content_language="en", connection="close")
    # Nobody reads on to where the next request would begin.
    assert await line.hear_the_end() == b""


async def test_a_phone_that_waits_for_100_continue_hears_it_and_is_confirmed(line: Line, phone: Phone) -> None:
    claim = phone.claim()
    headers = phone.headers | {"expect": "100-continue", "content-length": str(len(claim.body))}
    assert (await line.ask(message("PUT", claim.path, headers=headers))).status == 100
    assert (await line.ask(claim.body)).status == 201


async def test_a_phone_that_waits_to_send_too_much_hears_that_instead(line: Line, phone: Phone) -> None:
    headers = phone.headers | {"expect": "100-continue", "content-length": "9999999"}
    heard = await line.ask(message("PUT", phone.claim().path, headers=headers))
    assert_refused(heard, 413, "body_too_large", content_language="en", connection="close")


async def test_a_question_whose_announced_body_never_comes_is_answered_at_once(line: Line, phone: Phone) -> None:
    path = f"/v1/releases/{phone.made.release_id}/availability"
    assert (await line.ask(message("GET", path, headers={"content-length": "10"}))).status == 200


def _percent_encoded(path: str) -> str:
    return "".join(c if c == "/" else f"%{ord(c):02x}" for c in path)


@pytest.mark.parametrize("way", ["percent-encoded", "with a query", "absolute", "in upper case"])
async def test_an_address_in_another_notation_is_the_same_address(line: Line, phone: Phone, way: str) -> None:
    claim = phone.claim()
    written: list[str] = []
    for path in (claim.path, f"/v1/releases/{phone.made.release_id}/availability"):
        id_ = path.split("/")[3]
        notations = {
            "percent-encoded": _percent_encoded(path),
            "with a query": f"{path}?a=b&c",
            "absolute": f"http://clocktower.test{path}",
            "in upper case": path.replace(id_, id_.upper()),
        }
        written.append(notations[way])
    assert (await line.ask(message("PUT", written[0], claim.body, phone.headers))).status == 201
    assert (await line.ask(message("GET", written[1]))).status == 200
    assert (await line.ask(claim_message(phone, claim))).status == 200


async def test_header_names_may_be_written_in_any_case(line: Line, phone: Phone) -> None:
    claim = phone.claim()
    headers = {name.upper(): value for name, value in phone.headers.items()} | {"X-ReQuest-ID": "phone-0007"}
    heard = await line.ask(message("PUT", claim.path, claim.body, headers))
    assert (heard.status, heard.headers["x-request-id"]) == (201, "phone-0007")


async def test_who_wants_to_speak_something_else_is_answered_in_http(line: Line, phone: Phone) -> None:
    headers = phone.headers | {"connection": "upgrade, http2-settings", "upgrade": "h2c", "http2-settings": "AAMA"}
    heard = await line.ask(message("GET", f"/v1/releases/{phone.made.release_id}/availability", headers=headers))
    assert heard.status == 200


def _wrong(phone: Phone) -> dict[str, tuple[bytes, int, str, Mapping[str, str]]]:
    """Return what is wrong, how it is sent, and what is told, with the headers that only this refusal has."""
    claim = phone.claim()
    path, body, headers = claim.path, claim.body, phone.headers
    without_pass = {name: value for name, value in headers.items() if name != "authorization"}
    poll = f"/v1/releases/{phone.made.release_id}/availability"
    challenge, allow_claim = {"www_authenticate": "Pass"}, {"allow": "DELETE, GET, HEAD, PUT"}
    text = headers | {"content-type": "text/plain"}
    forged = headers | {"authorization": headers["authorization"][:-4] + "AAAA"}
    english = {"accept-language": "en"}
    return {
        "media type": (message("PUT", path, body, text), 415, "unsupported_media_type", {}),
        "no pass": (message("PUT", path, body, without_pass), 401, "not_authenticated", challenge),
        "no text of a pass": (
            message("PUT", path, body, headers | {"authorization": "Pass  "}), 401, "not_authenticated", challenge,
        ),
        "another scheme": (
            message("PUT", path, body, headers | {"authorization": "Bearer abc"}), 401, "not_authenticated", challenge,
        ),
        "forged pass": (message("PUT", path, body, forged), 403, "pass_invalid", {}),
        "no JSON": (message("PUT", path, b"{", headers), 400, "malformed_json", {}),
        "no body": (message("PUT", path, b"", headers), 422, "validation_failed", {}),
        "no body announced": (message("PUT", path, None, headers), 422, "validation_failed", {}),
        "unknown field": (message("PUT", path, b'{"x":1,' + body[1:], headers), 422, "validation_failed", {}),
        "a name twice": (message("PUT", path, b'{"people":[],' + body[1:], headers), 400, "malformed_json", {}),
        "method": (message("POST", path, body, headers), 405, "method_not_allowed", allow_claim),
        "method of a poll": (message("PUT", poll, b"{}", headers), 405, "method_not_allowed", {"allow": "GET, HEAD"}),
        "claim id": (message("PUT", "/v1/claims/me", body, headers), 422, "validation_failed", {}),
        "a path below a claim": (message("PUT", f"{path}/x", body, headers), 404, "not_found", {}),
        "unknown claim": (message("GET", f"/v1/claims/{uuid4()}", headers=headers), 404, "not_found", {}),
        "unknown release": (
            message("GET", f"/v1/releases/{uuid4()}/availability", headers=english), 404, "not_found", {},
        ),
    }  # fmt: skip


WRONG: Final = [*_wrong(Phone(MadeRelease(UUID(int=0), (UUID(int=1),), (1,)), "pass", UUID(int=2), (UUID(int=3),)))]


@pytest.mark.parametrize("fault", WRONG)
async def test_what_is_wrong_is_told_and_the_next_request_is_answered(line: Line, phone: Phone, fault: str) -> None:
    sent, status, word, own = _wrong(phone)[fault]
    assert_refused(await line.ask(sent), status, word, content_language="en", **own)
    assert (await line.ask(claim_message(phone))).status == 201


async def test_an_expired_pass_and_a_sold_out_pool_are_told_from_the_scripts_own_word(
    line: Line, signer: PassSigner, made: MadeRelease
) -> None:
    late = Phone.with_pass(signer, made, expires_ms=1)
    assert_refused(await line.ask(claim_message(late)), 403, "pass_expired", content_language="en")
    for _ in range(made.capacities[1]):
        winner = Phone.with_pass(signer, made)
        assert (await line.ask(claim_message(winner, winner.claim(1)))).status == 201
    answers: list[Heard] = []
    for language in ("en", "zh-CN", "en"):
        loser = Phone.with_pass(signer, made)
        answers.append(await line.ask(claim_message(loser, loser.claim(1), accept_language=language)))
    # Told from one text to everybody, and still to each with an id of its own.
    for heard, language in zip(answers, ("en", "zh-CN", "en"), strict=True):
        while heard.word == "full":
            # The last confirmation is on its way.
            await asyncio.sleep(0.1)
            loser = Phone.with_pass(signer, made)
            heard = await line.ask(claim_message(loser, loser.claim(1), accept_language=language))  # noqa: PLW2901
        said = assert_refused(heard, 409, "sold_out", content_language=language)
        assert said["final"] is True


async def test_a_head_that_has_no_end_is_refused(line: Line, phone: Phone) -> None:
    # All of it is read, so the answer arrives before the end of the connection.
    sent = claim_message(phone, x_more="a" * HEAD_LIMIT_BYTES)[: HEAD_LIMIT_BYTES + 1]
    heard = await line.ask(sent)
    assert (heard.status, heard.word, heard.headers["connection"]) == (431, "head_too_large", "close")
    assert await line.hear_the_end() == b""


@pytest.mark.parametrize("cut_at", [0, 30_000, HEAD_LIMIT_BYTES])
@pytest.mark.parametrize("too_long", [False, True])
async def test_how_long_a_head_may_be_does_not_depend_on_how_it_arrives(
    line: Line, phone: Phone, *, cut_at: int, too_long: bool
) -> None:
    frame = len(message("PUT", phone.claim().path, headers=phone.headers | {"x-more": "", "content-length": "99"}))
    claim = claim_message(phone, x_more="a" * (HEAD_LIMIT_BYTES - frame - 1_000 + 2_000 * too_long))
    line.send(claim[:cut_at])
    await asyncio.sleep(0.05)
    line.send(claim[cut_at:])
    heard = await line.hear()
    assert (heard.status, heard.word) == ((431, "head_too_large") if too_long else (201, "confirmed"))


async def test_a_body_in_the_smallest_chunks_is_read(line: Line, phone: Phone) -> None:
    claim = phone.claim()
    padded = claim.body + b" " * (BODY_LIMIT_BYTES - len(claim.body) - 1)
    in_chunks = phone.headers | {"transfer-encoding": "chunked"}
    await line.send_in_pieces(message("PUT", claim.path, chunked(padded, 1), in_chunks), 10_000)
    assert (await line.hear()).status == 201


@pytest.mark.parametrize(
    "repeated",
    [b"t: a\r\n", b"t: " + b"a" * 10_000 + b"\r\n", b"a" * 10_000, b"t"],
    ids=["short fields", "long fields", "one endless name", "one endless name by letters"],
)
@pytest.mark.parametrize("path", ["/v1/claims/0197a3c0-1c00-7000-8000-0000000000c1", "/v1/nothing"])
async def test_what_has_no_end_behind_a_body_is_read_no_further(line: Line, path: str, repeated: bytes) -> None:
    line.send(message("PUT", path, b"2\r\n{}\r\n0\r\n", {"transfer-encoding": "chunked"}))
    await _refused_before_long(line, repeated)


async def test_what_has_no_end_beside_a_chunk_is_read_no_further(line: Line) -> None:
    line.send(message("POST", "/v1/auth/wechat", b"2;a=", {"transfer-encoding": "chunked"}))
    await _refused_before_long(line, b"a" * 1_000)


async def _refused_before_long(line: Line, repeated: bytes) -> None:
    """Send so often that it is far too much, and demand that it ends long before."""
    sent_bytes = 0
    ended = asyncio.create_task(line.hear_the_end())
    piece = repeated * (1 + 8_000 // len(repeated))
    while not ended.done() and sent_bytes < 100 * HEAD_LIMIT_BYTES:
        line.send(piece)
        sent_bytes += len(piece)
        await asyncio.sleep(0.001)
    assert sent_bytes < 50 * HEAD_LIMIT_BYTES
    heard = await ended
    # Where it was answered before, and well, it is only hung up on.
    assert heard.count(b"HTTP/1.1 ") == 1
    assert b"HTTP/1.1 400 " in heard or b"HTTP/1.1 404 " in heard


async def test_a_poll_is_told_once_and_after_that_only_that_nothing_has_changed(line: Line, phone: Phone) -> None:
    path = f"/v1/releases/{phone.made.release_id}/availability"
    whole = await line.ask(message("GET", path))
    assert_headers(whole, content_type="application/json", etag=None, cache_control="no-cache")
    assert [pool["left"] for pool in whole.said["pools"]] == [30, 5]
    for known in (whole.headers["etag"], f'"other", W/{whole.headers["etag"]}', "*", " * "):
        unchanged = await line.ask(message("GET", path, headers={"if-none-match": known}))
        assert (unchanged.status, unchanged.body) == (304, b"")
        assert_headers(unchanged, etag=whole.headers["etag"], cache_control="no-cache")
    for other in ('"other"', ""):
        assert (await line.ask(message("GET", path, headers={"if-none-match": other}))).status == 200
    head = await line.ask(message("HEAD", path), to_head=True)
    assert head.headers["content-length"] == str(len(whole.body))


@pytest.mark.parametrize("given", ["phone-0001", "a" * 64, "A.b_c-9" * 2])
async def test_a_phones_own_request_id_comes_back(line: Line, phone: Phone, given: str) -> None:
    for sent in (claim_message(phone, x_request_id=given), message("GET", "/v1/claims/x", headers=phone.headers)):
        heard = await line.ask(sent)
        assert (heard.headers["x-request-id"] == given) is (heard.status == 201)
    refused = await line.ask(claim_message(phone, phone.claim(people=[uuid4()]), x_request_id=given))
    assert assert_refused(refused, 403, "not_eligible", content_language="en")["request_id"] == given


@pytest.mark.parametrize("given", ["short", "x" * 65, 'forged", "level": "error', ""])
async def test_a_request_id_that_is_no_token_is_replaced(line: Line, phone: Phone, given: str) -> None:
    heard = await line.ask(claim_message(phone, x_request_id=given))
    assert heard.headers["x-request-id"] != given
    assert len(heard.headers["x-request-id"]) == 24


@pytest.mark.parametrize(
    ("asked", "told"),
    [("en", "en"), ("en-GB,zh;q=0.5", "en"), ("zh", "zh-CN"), ("de", "zh-CN"), ("", "zh-CN"), (None, "zh-CN")],
)
async def test_a_refusal_speaks_the_language_that_was_asked_for(
    line: Line, phone: Phone, asked: str | None, told: str
) -> None:
    headers = phone.headers | {"accept-language": asked or ""}
    if asked is None:
        del headers["accept-language"]
    heard = await line.ask(message("PUT", phone.claim().path, b"{", headers))
    assert_refused(heard, 400, "malformed_json", content_language=told)


async def test_what_is_not_the_gates_goes_to_the_api(line: Line, phone: Phone) -> None:
    path = phone.claim().path
    for sent in (message("DELETE", path, headers=phone.headers), message("GET", path)):
        heard = await line.ask(sent)
        # Those who are signed in may do this, and a pass is no sign of that.
        assert (heard.status, heard.headers["www-authenticate"]) == (401, "Bearer")
    assert (await line.ask(message("GET", "/v1/time"))).status == 200
