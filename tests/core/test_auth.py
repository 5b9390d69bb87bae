"""Access tokens: which are believed, and until when."""

import base64
import json
from collections.abc import Mapping

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.auth import sign_access_token, verify_access_token
from app.core.ids import new_id
from app.core.problems import NotAuthenticated, TokenExpired

KEY = b"a key of thirty-two bytes or more"
OTHER_KEY = b"another key of thirty-two bytes!!"
NOW_MS = 1_782_867_600_500
NOW_S = NOW_MS // 1000
ACCOUNT_ID = new_id()

CLAIMS: Mapping[str, object] = {
    "iss": "clocktower",
    "sub": str(ACCOUNT_ID),
    "iat": NOW_S,
    "exp": NOW_S + 60,
    "jti": "abc",
    "typ": "access",
}


def signed(claims: Mapping[str, object], *, key: bytes = KEY, algorithm: str = "HS256") -> str:
    return jwt.encode(dict(claims), key, algorithm=algorithm)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_a_signed_token_speaks_for_its_account() -> None:
    token = sign_access_token(ACCOUNT_ID, key=KEY, now_ms=NOW_MS, lifetime_seconds=60)
    assert verify_access_token(token, key=KEY, now_ms=NOW_MS) == ACCOUNT_ID
    assert verify_access_token(signed(CLAIMS), key=KEY, now_ms=NOW_MS) == ACCOUNT_ID


def test_two_tokens_of_one_second_differ() -> None:
    one, two = (sign_access_token(ACCOUNT_ID, key=KEY, now_ms=NOW_MS, lifetime_seconds=60) for _ in range(2))
    assert one != two


def test_a_token_expires_on_the_millisecond_by_the_given_instant_even_when_it_was_believed_before() -> None:
    token = signed(CLAIMS)
    last_ms = (NOW_S + 60) * 1000 - 1
    assert verify_access_token(token, key=KEY, now_ms=last_ms) == ACCOUNT_ID
    for late_ms in (last_ms + 1, last_ms + 10**12):
        with pytest.raises(TokenExpired):
            verify_access_token(token, key=KEY, now_ms=late_ms)
    # The given instant decides, not the machine's clock: by an earlier one the token is good again.
    assert verify_access_token(token, key=KEY, now_ms=NOW_MS) == ACCOUNT_ID


def test_a_token_from_the_future_is_refused_beyond_what_two_clocks_may_differ() -> None:
    token = signed({**CLAIMS, "iat": NOW_S + 3, "exp": NOW_S + 60})
    assert verify_access_token(token, key=KEY, now_ms=NOW_MS) == ACCOUNT_ID
    with pytest.raises(NotAuthenticated):
        verify_access_token(token, key=KEY, now_ms=NOW_MS - 10_000)


def test_a_believed_token_is_not_believed_under_another_key() -> None:
    token = signed(CLAIMS)
    verify_access_token(token, key=KEY, now_ms=NOW_MS)
    with pytest.raises(NotAuthenticated):
        verify_access_token(token, key=OTHER_KEY, now_ms=NOW_MS)


REFUSED: Mapping[str, str] = {
    "of another key": signed(CLAIMS, key=OTHER_KEY),
    "of a longer hash": signed(CLAIMS, key=KEY * 2, algorithm="HS512"),
    "of the same key and another hash": f"{part({'alg': 'HS384', 'typ': 'JWT'})}.{part(CLAIMS)}.AAAA",
    "unsigned": jwt.encode(dict(CLAIMS), "", algorithm="none"),
    "unsigned, with a stray signature": f"{part({'alg': 'none'})}.{part(CLAIMS)}.AAAA",
    "of an asymmetric algorithm": f"{part({'alg': 'RS256', 'typ': 'JWT'})}.{part(CLAIMS)}.AAAA",
    "with a critical extension": f"{part({'alg': 'HS256', 'crit': ['x'], 'x': 1})}.{part(CLAIMS)}.AAAA",
    "with its last characters cut": signed(CLAIMS)[:-2],
    "with the claims of another": ".".join(
        [signed(CLAIMS).split(".")[0], part({**CLAIMS, "sub": str(new_id())}), signed(CLAIMS).split(".")[2]]
    ),
    "of another issuer": signed({**CLAIMS, "iss": "elsewhere"}),
    "of another type": signed({**CLAIMS, "typ": "refresh"}),
    "with a subject that is no id": signed({**CLAIMS, "sub": "root"}),
    "with a time that is a text": signed({**CLAIMS, "jti": 1, "exp": "9999999999"}),
    "with a time that is true": signed({**CLAIMS, "exp": True}),
    "with a fraction of a second": signed({**CLAIMS, "exp": NOW_S + 0.5}),
    **{f"without {name}": signed({k: v for k, v in CLAIMS.items() if k != name}) for name in CLAIMS},
    "that is empty": "",
    "that is dots": "..",
    "that is not ASCII": "é.é.é",
    "with a lone surrogate": "\ud800.a.b",
    "that nests": f"{base64.urlsafe_b64encode(b'[' * 300).decode()}.a.b",
    "that is enormous": "a" * 100_000,
}


@pytest.mark.parametrize("token", REFUSED.values(), ids=REFUSED.keys())
def test_a_token_is_not_believed(token: str) -> None:
    with pytest.raises(NotAuthenticated):
        verify_access_token(token, key=KEY, now_ms=NOW_MS)


@given(st.text(max_size=600))
def test_whatever_is_sent_as_a_token_is_refused_and_breaks_nothing(token: str) -> None:
    with pytest.raises(NotAuthenticated):
        verify_access_token(token, key=KEY, now_ms=NOW_MS)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_no_altered_character_of_a_good_token_is_believed(place: int, shift: int) -> None:
    token = signed(CLAIMS)
    # The last character carries two bits that mean nothing (RFC 4648, section 3.5).
    place %= len(token) - 1
    altered = token[:place] + chr((ord(token[place]) + shift) % 256) + token[place + 1 :]
    with pytest.raises(NotAuthenticated):
        verify_access_token(altered, key=KEY, now_ms=NOW_MS)
