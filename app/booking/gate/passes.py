"""Passes: everything that is slow to find out about a claim, found out before the opening and signed.

A pass says whose it is, for which release, for which people, and which pools each of them may claim. The gate checks
the signature in memory and asks nobody. Signed with HMAC-SHA256 (RFC 2104) over the packed contents.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as BadBase64
from typing import Final, Self
from uuid import UUID

import msgspec

from app.booking.gate.errors import PassInvalid

_VERSION: Final = 1
_SIGNATURE_BYTES: Final = 32
# No pass that we sign is longer: 20 people and 200 pools make some 1.5 KiB.
_LENGTH_LIMIT: Final = 4_096
# Verified passes kept by one worker, by their text. At some 600 bytes each: 30 MB at the most.
_CACHE_LIMIT: Final = 50_000


class PassPerson(msgspec.Struct, frozen=True, array_like=True):
    """One person of a pass: which pools (bit n of `pools`, little-endian, is ordinal n), and an own later opening."""

    person: bytes
    pools: bytes
    delay_ms: int

    def may_claim(self, ordinal: int) -> bool:
        """Say whether this person may claim the pool with this ordinal."""
        byte, bit = divmod(ordinal, 8)
        return byte < len(self.pools) and bool(self.pools[byte] >> bit & 1)


class Pass(msgspec.Struct, frozen=True, array_like=True):
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


class PassSigner:
    """Signs passes, and checks them in memory. A pass that was checked is known by its text from then on."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self._known: dict[str, Pass] = {}

    def sign(self, contents: Pass) -> str:
        """Return the pass as it goes into `Authorization: Pass …`."""
        body = msgspec.msgpack.encode(contents)
        return urlsafe_b64encode(body + hmac.digest(self._key, body, "sha256")).rstrip(b"=").decode()

    def verify(self, text: str) -> Pass:
        """Return the contents of a genuine pass; when it expires is for the script to judge.

        Raises `PassInvalid` for anything that was not signed by us, whole and unchanged.
        """
        known = self._known.get(text)
        if known is not None:
            return known
        contents = self._verify(text)
        while len(self._known) >= _CACHE_LIMIT:
            del self._known[next(iter(self._known))]
        self._known[text] = contents
        return contents

    def _verify(self, text: str) -> Pass:
        if len(text) > _LENGTH_LIMIT:
            raise PassInvalid
        try:
            signed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (BadBase64, ValueError):
            raise PassInvalid from None
        # The decoder skips what is no base64: one pass would have endless texts, and each a place in the cache.
        if urlsafe_b64encode(signed).rstrip(b"=").decode() != text:
            raise PassInvalid
        body, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(hmac.digest(self._key, body, "sha256"), signature):
            raise PassInvalid
        try:
            contents = msgspec.msgpack.decode(body, type=Pass)
        except msgspec.DecodeError:
            raise PassInvalid from None
        if contents.version != _VERSION:
            raise PassInvalid
        return contents
