"""Tokens and passes that are forged, altered, out of time, or shown in the wrong place: over HTTP, in both ways."""

import asyncio
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import httpx2
import jwt
import pytest

from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of
from app.core.auth import sign_access_token
from app.core.clock import Clock
from app.core.ids import new_id
from app.core.settings import Settings
from tests.booking.gate.builders import MadeRelease, Phone, changed
from tests.contract.line import Heard, Line, claim_message, message

pytestmark = pytest.mark.anyio

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Everything secret that one parent holds, each of it good in one place and in no other."""

    account_id: UUID
    access: str
    refresh: str
    gate_pass: str
    invitation: str
    claim_path: str


@pytest.fixture
async def held(client: httpx2.AsyncClient, made: MadeRelease) -> Credentials:
    """Let a parent get one of each over the API, and claim a place."""
    signed_in = (await client.post("/v1/auth/wechat", json={"code": f"demo-{new_id().hex}"})).json()
    bearer = {"authorization": f"Bearer {signed_in['access_token']}"}
    person = {
        "nickname": "小满",
        "birth_month": "2016-05",
        "relation": "child",
        "consent": {"version": "2026-09", "purposes": ["booking"]},
    }
    person_id = (await client.post("/v1/me/people", json=person, headers=bearer)).json()["id"]
    body = {"people": [person_id]}
    passed = await client.post(f"/v1/releases/{made.release_id}/pass", json=body, headers=bearer)
    invited = await client.post(f"/v1/me/people/{person_id}/invitations", headers=bearer)
    gate_pass, claim_path = passed.json()["pass"], f"/v1/claims/{new_id()}"
    claim = {"release": str(made.release_id), **body, "choices": [str(made.pools[0])]}
    claimed = await client.put(claim_path, json=claim, headers={"authorization": f"Pass {gate_pass}"})
    assert claimed.status_code == 201, claimed.text
    return Credentials(
        account_id=UUID(signed_in["account"]["id"]),
        access=signed_in["access_token"],
        refresh=signed_in["refresh_token"],
        gate_pass=gate_pass,
        invitation=invited.json()["token"],
        claim_path=claim_path,
    )


def altered(text: str, place: int) -> str:
    """Return a text of the URL-safe alphabet of which one character's highest bit is another (a dot becomes none)."""
    sign = text[place]
    other = _ALPHABET[_ALPHABET.index(sign) ^ 32] if sign in _ALPHABET else "A"
    return text[:place] + other + text[place + 1 :]


async def test_a_pass_with_any_character_altered_claims_nothing_and_asks_nothing(
    line: Line, held: Credentials, made: MadeRelease, signer: PassSigner
) -> None:
    phone = Phone.with_pass(signer, made)
    for place in range(len(phone.text)):
        forged = {"authorization": f"Pass {altered(phone.text, place)}"}
        heard = await line.ask(claim_message(phone, None, **forged))
        assert (heard.status, heard.word) == (403, "pass_invalid"), place
    for place in range(len(held.gate_pass)):
        forged = {"authorization": f"Pass {altered(held.gate_pass, place)}"}
        heard = await line.ask(message("GET", held.claim_path, headers=forged))
        assert (heard.status, heard.word) == (403, "pass_invalid"), place
    assert (await line.ask(claim_message(phone))).status == 201


async def test_an_access_token_with_any_character_altered_speaks_for_nobody(line: Line, held: Credentials) -> None:
    for place in range(len(held.access)):
        forged = {"authorization": f"Bearer {altered(held.access, place)}"}
        heard = await line.ask(message("GET", "/v1/me", headers=forged))
        assert (heard.status, heard.word) == (401, "not_authenticated"), place
    assert (await line.ask(message("GET", "/v1/me", headers={"authorization": f"Bearer {held.access}"}))).status == 200


Show = Callable[[httpx2.AsyncClient, Credentials, str], Awaitable[httpx2.Response]]
CONSENT: Final = {"version": "2026-09", "purposes": ["booking"]}


async def _as_token(client: httpx2.AsyncClient, _held: Credentials, secret: str) -> httpx2.Response:
    return await client.get("/v1/me", headers={"authorization": f"Bearer {secret}"})


async def _as_pass(client: httpx2.AsyncClient, held: Credentials, secret: str) -> httpx2.Response:
    return await client.get(held.claim_path, headers={"authorization": f"Pass {secret}"})


async def _as_pass_of_a_claim(client: httpx2.AsyncClient, _held: Credentials, secret: str) -> httpx2.Response:
    body = {"release": str(new_id()), "people": [str(new_id())], "choices": [str(new_id())]}
    return await client.put(f"/v1/claims/{new_id()}", json=body, headers={"authorization": f"Pass {secret}"})


async def _to_refresh(client: httpx2.AsyncClient, _held: Credentials, secret: str) -> httpx2.Response:
    return await client.post("/v1/auth/refresh", json={"refresh_token": secret})


async def _as_invitation(client: httpx2.AsyncClient, _held: Credentials, secret: str) -> httpx2.Response:
    guest = (await client.post("/v1/auth/wechat", json={"code": f"demo-{new_id().hex}"})).json()
    return await client.post(
        "/v1/me/invitations/accept",
        json={"token": secret, "relation": "child", "consent": CONSENT},
        headers={"authorization": f"Bearer {guest['access_token']}"},
    )


# Where each secret is shown, which one is good there, and what it then hears.
PLACES: Final[Mapping[str, tuple[Show, str, set[int]]]] = {
    "as a token": (_as_token, "access", {200}),
    # The gate may not have heard yet that the place is confirmed.
    "as a pass": (_as_pass, "gate_pass", {200, 202}),
    # A genuine pass, for another release than the claim's.
    "as the pass of a claim": (_as_pass_of_a_claim, "gate_pass", {403}),
    "to refresh": (_to_refresh, "refresh", {200}),
    "as an invitation": (_as_invitation, "invitation", {201}),
}


async def test_what_stands_behind_a_body_is_nobodys_credential(line: Line, held: Credentials) -> None:
    """A proxy looks at what is in the head, and so do we (RFC 9110, section 6.5.1)."""
    for method, path, secret in (
        ("GET", "/v1/me", f"Bearer {held.access}"),
        ("GET", held.claim_path, f"Pass {held.gate_pass}"),
        ("PUT", held.claim_path, f"Pass {held.gate_pass}"),
        ("PUT", "/v1/nothing", f"Bearer {held.access}"),
    ):
        sent = message(method, path, headers={"transfer-encoding": "chunked", "content-type": "application/json"})
        behind = f"0\r\nauthorization: {secret}\r\nx-request-id: from-behind\r\n\r\n".encode()
        for is_cut in (False, True):
            # In one piece, it is there before anybody has looked at the head.
            line.send(sent + b"2\r\n{}\r\n" + (b"" if is_cut else behind))
            if is_cut:
                await asyncio.sleep(0.02)
                line.send(behind)
            heard = await line.hear()
            bare = await line.ask(sent + b"2\r\n{}\r\n0\r\n\r\n")
            assert (heard.status, heard.word) == (bare.status, bare.word)
            assert heard.headers["x-request-id"] != "from-behind"


@pytest.mark.parametrize("place", PLACES)
async def test_a_secret_is_good_in_its_own_place_only(
    client: httpx2.AsyncClient, held: Credentials, place: str
) -> None:
    show, good, granted = PLACES[place]
    secrets = {name: getattr(held, name) for name in ("access", "refresh", "gate_pass", "invitation")}
    for name, secret in secrets.items():
        if name != good:
            answer = await show(client, held, secret)
            assert answer.status_code in {401, 403, 404, 422}, (name, answer.text)
            assert "access_token" not in answer.text
    assert (await show(client, held, secrets[good])).status_code in granted


async def test_a_token_or_a_claim_of_somebody_else_is_not_signed_out_or_shown_by_another_secret(
    client: httpx2.AsyncClient, held: Credentials, made: MadeRelease, signer: PassSigner
) -> None:
    for secret in (held.access, held.gate_pass, held.invitation):
        # To sign out with what is unknown is no refusal, unless it is too long for any. Nothing ended.
        assert (await client.post("/v1/auth/logout", json={"refresh_token": secret})).status_code in {204, 422}
    assert (await _to_refresh(client, held, held.refresh)).status_code == 200
    other = Phone.with_pass(signer, made)
    asked = await client.get(held.claim_path, headers=other.headers)
    assert (asked.status_code, asked.json()["code"]) == (404, "not_found")


async def test_a_claim_id_of_somebody_else_is_neither_taken_over_nor_told_of(
    client: httpx2.AsyncClient, held: Credentials, made: MadeRelease, signer: PassSigner
) -> None:
    other = Phone.with_pass(signer, made)
    request = changed(other.claim(), path=held.claim_path)
    answer = await client.put(request.path, content=request.body, headers=other.headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    assert str(held.account_id) not in answer.text
    assert "bookings" not in answer.text
    own = await client.get(held.claim_path, headers={"authorization": f"Bearer {held.access}"})
    assert own.json()["state"] == "confirmed"


async def test_the_pass_of_one_child_is_not_for_another_though_the_account_is_the_same(
    line: Line, made: MadeRelease, signer: PassSigner
) -> None:
    first = Phone.with_pass(signer, made)
    second = Phone.with_pass(signer, made, account=first.account)
    heard = await line.ask(claim_message(first, first.claim(people=second.people)))
    assert (heard.status, heard.word) == (403, "not_eligible")
    heard = await line.ask(claim_message(first, first.claim(people=(*first.people, *second.people))))
    assert (heard.status, heard.word) == (403, "not_eligible")


async def test_a_pass_opens_no_pool_that_it_does_not_name(line: Line, made: MadeRelease, signer: PassSigner) -> None:
    person, account = new_id(), new_id()
    only_first = PassPerson(person.bytes, mask_of({0}), 0)
    text = signer.sign(Pass.of(made.release_id, account, Clock().now_ms() + 60_000, (only_first,)))
    phone = Phone(made, text, account, (person,))
    for ordinals in ((1,), (0, 1)):
        heard = await line.ask(claim_message(phone, phone.claim(*ordinals)))
        assert (heard.status, heard.word) == (403, "not_eligible")
    assert (await line.ask(claim_message(phone, phone.claim(0)))).status == 201


async def test_a_child_who_was_removed_is_on_no_new_pass(
    client: httpx2.AsyncClient, held: Credentials, made: MadeRelease
) -> None:
    """One that was fetched before lives on until it expires: docs/decisions/blocked-accounts.md says why."""
    bearer = {"authorization": f"Bearer {held.access}"}
    (person,) = (await client.get("/v1/me/people", headers=bearer)).json()["items"]
    assert (await client.delete(f"/v1/me/people/{person['id']}", headers=bearer)).status_code == 204
    body = {"people": [person["id"]]}
    asked = await client.post(f"/v1/releases/{made.release_id}/pass", json=body, headers=bearer)
    assert (asked.status_code, asked.json()["code"]) == (404, "unknown_person")


# --- out of time, by the server's clock ----------------------------------------------------------------------------


async def test_a_pass_that_expired_a_second_ago_claims_nothing_and_one_with_a_minute_left_does(
    line: Line, made: MadeRelease, signer: PassSigner
) -> None:
    now_ms = Clock().now_ms()
    for expires_ms, told in ((now_ms - 1_000, (403, "pass_expired")), (now_ms + 60_000, (201, "confirmed"))):
        phone = Phone.with_pass(signer, made, expires_ms=expires_ms)
        heard = await line.ask(claim_message(phone))
        assert (heard.status, heard.word) == told


async def test_a_token_that_expired_a_second_ago_or_begins_a_minute_from_now_speaks_for_nobody(
    line: Line, settings: Settings, held: Credentials
) -> None:
    now_ms, key = Clock().now_ms(), settings.token_key.get_secret_value().encode()
    for signed_ms, told in (
        (now_ms - 61_000, (401, "token_expired")),
        (now_ms + 60_000, (401, "not_authenticated")),
        (now_ms, (200, None)),
    ):
        token = sign_access_token(held.account_id, key=key, now_ms=signed_ms, lifetime_seconds=60)
        heard = await line.ask(message("GET", "/v1/me", headers={"authorization": f"Bearer {token}"}))
        assert (heard.status, heard.said.get("code")) == told


# --- algorithms ----------------------------------------------------------------------------------------------------


def _part(text: bytes) -> str:
    return urlsafe_b64encode(text).rstrip(b"=").decode()


def _confused(settings: Settings, account_id: UUID) -> Mapping[str, str]:
    """Return tokens that want the server to take another algorithm or another key than its own."""
    key, now_s = settings.token_key.get_secret_value(), Clock().now_ms() // 1000
    claims: dict[str, Any] = {
        "iss": "clocktower",
        "sub": str(account_id),
        "iat": now_s,
        "exp": now_s + 60,
        "jti": "abc",
        "typ": "access",
    }
    mine = "a key of the attacker's own, long enough"
    jwk = {"kty": "oct", "k": _part(mine.encode()), "alg": "HS256"}
    body = jwt.encode(claims, key, algorithm="HS256").split(".")[1]

    def signed_by_hand(header: bytes, with_key: str) -> str:
        signed = f"{_part(header)}.{body}"
        return f"{signed}.{_part(hmac.digest(with_key.encode(), signed.encode(), sha256))}"

    return {
        "none": jwt.encode(claims, "", algorithm="none"),
        "none in other letters": _part(b'{"alg":"nOnE"}') + f".{body}.",
        "no algorithm, well signed": signed_by_hand(b'{"typ":"JWT"}', key),
        "RS256, signed as HS256": signed_by_hand(b'{"alg":"RS256","typ":"JWT"}', key),
        "HS384, signed as HS256": signed_by_hand(b'{"alg":"HS384","typ":"JWT"}', key),
        "two algorithms": signed_by_hand(b'{"alg":["HS256"],"typ":"JWT"}', key),
        "HS512 with the right key": jwt.encode(claims, key * 2, algorithm="HS512"),
        "another key": jwt.encode(claims, mine, algorithm="HS256"),
        "the empty key": signed_by_hand(b'{"alg":"HS256","typ":"JWT"}', ""),
        "a key of its own in the header": jwt.encode(claims, mine, algorithm="HS256", headers={"jwk": jwk}),
        "a key to be fetched": jwt.encode(claims, mine, algorithm="HS256", headers={"jku": "http://127.0.0.1:1/k"}),
        "a key by its file": jwt.encode(claims, mine, algorithm="HS256", headers={"kid": "../../../../dev/null"}),
        "the key of passes": jwt.encode(claims, settings.pass_key.get_secret_value(), algorithm="HS256"),
        "an unencoded body": signed_by_hand(b'{"alg":"HS256","b64":false,"crit":["b64"]}', key),
        "encrypted": _part(b'{"alg":"dir","enc":"A256GCM"}') + f".{body}" * 4,
    }


async def test_no_token_chooses_its_own_algorithm_or_key(line: Line, settings: Settings, held: Credentials) -> None:
    confused = _confused(settings, held.account_id)
    for name, token in confused.items():
        heard = await line.ask(message("GET", "/v1/me", headers={"authorization": f"Bearer {token}"}))
        assert (heard.status, heard.word) == (401, "not_authenticated"), name


async def test_a_pass_signed_with_another_key_or_by_another_hash_is_none(
    line: Line, settings: Settings, made: MadeRelease, signer: PassSigner
) -> None:
    phone = Phone.with_pass(signer, made)
    signed = urlsafe_b64decode(phone.text + "=" * (-len(phone.text) % 4))
    contents, key = signed[:-32], settings.pass_key.get_secret_value().encode()
    forged = {
        "no signature": contents,
        "a short signature": signed[:-1],
        "a signature of zeros": contents + bytes(32),
        "another key": contents + hmac.digest(b"another", contents, sha256),
        "the key of tokens": contents + hmac.digest(settings.token_key.get_secret_value().encode(), contents, sha256),
        "a bare hash": contents + sha256(contents).digest(),
        # What HMAC was made against (RFC 2104): a hash that goes on from where the key's hash ended.
        "a hash with the key in front": contents + sha256(key + contents).digest(),
        "another hash": contents + hmac.digest(key, contents, "sha512")[:32],
        "nothing": b"",
        "a signature of nothing": hmac.digest(b"", b"", sha256),
    }
    for name, bytes_ in forged.items():
        heard = await line.ask(claim_message(phone, authorization=f"Pass {_part(bytes_)}"))
        assert (heard.status, heard.word) in {(403, "pass_invalid"), (401, "not_authenticated")}, name


# --- too much ------------------------------------------------------------------------------------------------------

GARBAGE: Final[Mapping[str, bytes]] = {
    "nothing": b"",
    "a scheme alone": b"%b",
    "a scheme and blanks": b"%b   ",
    "too long": b"%b " + b"a" * 60_000,
    "long, of dots": b"%b " + b"." * 5_000,
    "bytes above ASCII": b"%b " + bytes(range(128, 256)),
    "no text of any encoding": b"%b \xc3\x28\xff\xfe",
    "two of them": b"%b a %b b",
    "a tab between": b"%b\ta",
    "brackets": b"%b " + b"[" * 400,
    "base64 of brackets": b"%b " + urlsafe_b64encode(b"[" * 300) + b".e30.a",
    "another scheme": b"Basic b3BlcmF0b3I6b3BlcmF0b3I=",
    "a digest": b'Digest username="operator", uri="/", response=""',
}


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_for_a_credential_is_refused_and_the_connection_goes_on(
    line: Line, made: MadeRelease, signer: PassSigner, garbage: str
) -> None:
    phone = Phone.with_pass(signer, made)
    claim = phone.claim()
    for method, path, body, scheme in (
        ("PUT", claim.path, claim.body, b"Pass"),
        ("GET", claim.path, b"", b"Pass"),
        ("GET", "/v1/me", b"", b"Bearer"),
        ("DELETE", claim.path, b"", b"bEARER"),
    ):
        shown = GARBAGE[garbage].replace(b"%b", scheme)
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        heard = await line.ask(head.encode() + b"authorization: " + shown + b"\r\n\r\n" + body)
        assert (heard.status, heard.word) in {(401, "not_authenticated"), (403, "pass_invalid")}, method
    assert (await line.ask(claim_message(phone, claim))).status == 201


async def test_a_thousand_headers_and_a_credential_among_them_count_as_one(
    line: Line, made: MadeRelease, signer: PassSigner
) -> None:
    phone = Phone.with_pass(signer, made)
    many = {f"x_{number}": "1" for number in range(1_000)}
    assert (await line.ask(claim_message(phone, None, **many))).status == 201
    without = {**many, "authorization": "Pass forged"}
    heard: Heard = await line.ask(claim_message(phone, None, **without))
    assert heard.status == 403
