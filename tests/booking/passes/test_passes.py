"""Passes: what is signed, and what cannot be had."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import uuid4

import msgspec
import pytest

from app.booking.gate.errors import PassInvalid
from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of

KEY = "a-key-of-the-tests-that-is-long-enough"


def contents() -> Pass:
    return Pass.of(uuid4(), uuid4(), 4_102_444_800_000, (PassPerson(uuid4().bytes, mask_of({0, 13}), 0),))


def test_a_pass_says_what_was_signed() -> None:
    signed = contents()
    assert PassSigner(KEY).verify(PassSigner(KEY).sign(signed).encode()) == signed


@pytest.mark.parametrize("ordinals", [set[int](), {0}, {7, 8}, {0, 13}, {199}])
def test_a_person_may_claim_exactly_the_pools_that_were_signed(ordinals: set[int]) -> None:
    person = PassPerson(b"", mask_of(ordinals), 0)
    assert {ordinal for ordinal in range(300) if person.may_claim(1 << ordinal)} == ordinals
    wanted = sum(1 << ordinal for ordinal in ordinals)
    assert person.may_claim(wanted)
    # One pool too many, and all of it is refused.
    assert not person.may_claim(wanted | 1 << 200)


def test_a_changed_byte_anywhere_makes_a_pass_worthless_though_the_pass_itself_is_known() -> None:
    signer = PassSigner(KEY)
    text = signer.sign(contents())
    signer.verify(text.encode())
    signed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    for at in range(len(signed)):
        forged = signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :]
        with pytest.raises(PassInvalid):
            signer.verify(urlsafe_b64encode(forged).rstrip(b"="))


@pytest.mark.parametrize("known", [False, True])
def test_a_pass_has_one_text_and_no_other_notation_of_it_is_taken(*, known: bool) -> None:
    signer = PassSigner(KEY)
    # Long enough for both signs that the two alphabets do not share.
    person = PassPerson(b"\xff\xfe" * 8, mask_of({0}), 0)
    text = signer.sign(Pass.of(uuid4(), uuid4(), 4_102_444_800_000, (person,) * 9)).encode()
    assert b"-" in text
    assert b"_" in text
    if known:
        signer.verify(text)
    for other in (text + b"=", text + b"\n", text.replace(b"-", b"+"), text.replace(b"_", b"/"), b" " + text):
        with pytest.raises(PassInvalid):
            signer.verify(other)


@pytest.mark.parametrize("text", ["", "!", "a", "aaaa", "a" * 43, "é", "x" * 5000, "A" * 64, "\x00", "aa=="])
def test_what_is_no_pass_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(PassInvalid):
        PassSigner(KEY).verify(text.encode())


def test_a_pass_signed_with_another_key_is_refused() -> None:
    with pytest.raises(PassInvalid):
        PassSigner(KEY).verify(PassSigner(KEY + "!").sign(contents()).encode())


def test_a_pass_of_another_version_is_refused() -> None:
    with pytest.raises(PassInvalid):
        PassSigner(KEY).verify(PassSigner(KEY).sign(msgspec.structs.replace(contents(), version=2)).encode())
