"""Passes: everything that is slow to find out about a claim, found out before the opening and signed.

A pass says whose it is, for which release, for which people, and which pools each of them may claim. The gate checks
the signature in memory and asks nobody. Signed with HMAC-SHA256 (RFC 2104) over the packed contents.
"""

from base64 import urlsafe_b64encode
from binascii import Error as BadBase64
from binascii import a2b_base64
from hashlib import sha256
from hmac import compare_digest
from typing import Final, Self
from uuid import UUID

import msgspec

from app.booking.gate.errors import PassInvalid

_VERSION: Final = 1
_SIGNATURE_BYTES: Final = 32
# Of RFC 2104: the block of SHA-256, and what the key is mixed with on the inner and on the outer way.
_BLOCK_BYTES: Final = 64
_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))
# From the alphabet of RFC 4648, section 5, to that of section 4. The signs of the latter become no sign at all.
_FROM_URLSAFE: Final = bytes.maketrans(b"-_+/=", b"+/   ")
_PADDING: Final = (b"", b"=", b"==", b"===")
# No pass that we sign is longer: 20 people and 200 pools make some 1.5 KiB.
_LENGTH_LIMIT: Final = 4_096


# Made for each claim, and none refers back to itself: the garbage collector need not look at them (`gc=False`).
class PassPerson(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One person of a pass: which pools (bit n of `pools`, little-endian, is ordinal n), and an own later opening."""

    person: bytes
    pools: bytes
    delay_ms: int

    def may_claim(self, ordinals: int) -> bool:
        """Say whether this person may claim all of these pools (bit n is ordinal n)."""
        return not ordinals & ~int.from_bytes(self.pools, "little")


class Pass(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The contents of a pass. Ids are 16 bytes; `expires_ms` is Unix milliseconds by Redis's clock."""

    version: int
    release: bytes
    account: bytes
    expires_ms: int
    people: tuple[PassPerson, ...]

    @classmethod
    def of(cls, release_id: UUID, account_id: UUID, expires_ms: int, people: tuple[PassPerson, ...]) -> Self:
        """Make the contents of a new pass."""
        return cls(_VERSION, release_id.bytes, account_id.bytes, expires_ms, people)

    def person(self, person: bytes) -> PassPerson | None:
        """Return what the pass says of a person, or None."""
        for candidate in self.people:
            if candidate.person == person:
                return candidate
        return None


def mask_of(ordinals: set[int]) -> bytes:
    """Return a set of pool ordinals as the bits of `PassPerson.pools`."""
    mask = 0
    for ordinal in ordinals:
        mask |= 1 << ordinal
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


_decode: Final = msgspec.msgpack.Decoder(Pass).decode


class PassSigner:
    """Signs passes, and checks them in memory, each time anew.

    None is remembered: in the second of an opening nearly every pass is a new one, and to keep it and free another
    costs three quarters of what the check does.
    """

    def __init__(self, key: str) -> None:
        # The key's own part of the work is done once: `hmac.digest` does it for each pass, which takes twice as long.
        padded = _block_of(key.encode())
        self._inner = sha256(padded.translate(_INNER_PAD))
        self._outer = sha256(padded.translate(_OUTER_PAD))

    def sign(self, contents: Pass) -> str:
        """Return the pass as it goes into `Authorization: Pass …`."""
        body = msgspec.msgpack.encode(contents)
        return urlsafe_b64encode(body + self._signature_of(body)).rstrip(b"=").decode()

    def verify(self, text: bytes) -> Pass:
        """Return the contents of a genuine pass; when it expires is for the script to judge.

        Raises `PassInvalid` for anything that was not signed by us, whole and unchanged.
        """
        if len(text) > _LENGTH_LIMIT:
            raise PassInvalid
        encoded = text.translate(_FROM_URLSAFE)
        try:
            # Strictly: left to itself it skips what is no base64, and any text would do for a pass.
            signed = a2b_base64(encoded + _PADDING[-len(encoded) % 4], strict_mode=True)
        except BadBase64:
            raise PassInvalid from None
        body, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
        if not compare_digest(self._signature_of(body), signature):
            raise PassInvalid
        try:
            contents = _decode(body)
        except msgspec.DecodeError:
            raise PassInvalid from None
        if contents.version != _VERSION:
            raise PassInvalid
        return contents

    def _signature_of(self, body: bytes) -> bytes:
        """Return the HMAC-SHA256 of a pass."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(body)
        outer.update(inner.digest())
        return outer.digest()


def _block_of(key: bytes) -> bytes:
    """Return a key as long as a block: a longer one is hashed first (RFC 2104, section 2)."""
    return (sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
