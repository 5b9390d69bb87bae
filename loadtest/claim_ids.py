"""The id a phone chooses for its claim: UUIDv7 (RFC 9562, section 5.7), as the API advises.

Random, never drawn from the crowd's seed: two rehearsals of one seed are two crowds, and a claim id names one claim
for ever.
"""

import random
import time
from typing import Final

# Seeded by the operating system: five thousand phones choose within a second, so ids must be cheap, not secret.
_PHONES: Final = random.Random()


def new_claim_id() -> str:
    """Make one claim id."""
    milliseconds = time.time_ns() // 1_000_000
    digits = f"{milliseconds & (1 << 48) - 1:012x}7{_PHONES.getrandbits(12):03x}{0x8 | _PHONES.getrandbits(2):x}"
    digits += f"{_PHONES.getrandbits(60):015x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
