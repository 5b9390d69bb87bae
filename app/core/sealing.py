"""Seals personal fields before they reach the database, so that a stolen backup tells no names.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce. Layout: one byte that tells which key sealed it, the nonce,
then ciphertext and tag. The row's id is bound in as associated data: a sealed value that is copied to another row
does not open there.
"""

import secrets
from functools import lru_cache
from hashlib import sha256
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.core.settings import Settings

_KEY_ID_BYTES: Final = 1
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
# Told apart from any other use of the same secret.
_DERIVATION: Final = b"clocktower sealing 1\x00"


class SealBrokenError(Exception):
    """A sealed value does not open: sealed with another key, for another row, or altered. Never a caller's fault."""


class Sealer:
    """Seals and opens with one key, derived from the setting by SHA-256.

    A random nonce allows some 2**32 values under one key (SP 800-38D, section 8.3), which is more people than live.
    """

    def __init__(self, secret: str) -> None:
        key = sha256(_DERIVATION + secret.encode()).digest()
        self._cipher = AESGCM(key)
        # Derived, not numbered: a database that was sealed with another key is recognised without a register.
        self._key_id = sha256(key).digest()[:_KEY_ID_BYTES]

    def seal(self, text: str, *, row_id: UUID) -> bytes:
        """Return the text as only the same key and row id can open it; two sealings never look alike."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return self._key_id + nonce + self._cipher.encrypt(nonce, text.encode(), self._key_id + row_id.bytes)

    def open(self, sealed: bytes, *, row_id: UUID) -> str:
        """Return the text again; raise `SealBrokenError` when key, row or bytes are not the ones it was sealed with."""
        if len(sealed) < _KEY_ID_BYTES + _NONCE_BYTES + _TAG_BYTES:
            raise SealBrokenError("too short")
        if sealed[:_KEY_ID_BYTES] != self._key_id:
            raise SealBrokenError("sealed with another key")
        nonce = sealed[_KEY_ID_BYTES : _KEY_ID_BYTES + _NONCE_BYTES]
        ciphertext = sealed[_KEY_ID_BYTES + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, ciphertext, self._key_id + row_id.bytes).decode()
        except InvalidTag:
            raise SealBrokenError("altered, or of another row") from None


@lru_cache(maxsize=4)
def _sealer_of(secret: str) -> Sealer:
    return Sealer(secret)


def sealer_for(settings: Settings) -> Sealer:
    """Return the sealer of these settings, made once."""
    return _sealer_of(settings.sealing_key.get_secret_value())
