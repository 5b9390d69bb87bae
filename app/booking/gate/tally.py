"""Counts what happens on the way of a claim in plain numbers, which are published once a sweep interval.

A published number costs a lock and a write; at an opening a refusal must not pay for it.
"""

from collections import defaultdict
from typing import Final

from app.core import metrics

# By the byte of the script's letter (see claim.lua).
JUDGED: Final = [0] * 128
# By what `commit_claims_v2` says.
WRITTEN: Final[defaultdict[str, int]] = defaultdict(int)

_LETTERS: Final = {
    "T": "booked",
    "W": "waitlisted",
    "K": "known",
    "P": "on_its_way",
    "G": "sold_out",
    "F": "full",
    "B": "already_booked",
    "U": "undecided",
    "L": "limit_reached",
    "N": "not_open_yet",
    "Z": "closed",
    "X": "pass_expired",
    "M": "idempotency_mismatch",
}


def publish() -> None:
    """Publish what was counted since the last time."""
    for letter, outcome in _LETTERS.items():
        count, JUDGED[ord(letter)] = JUDGED[ord(letter)], 0
        if count:
            metrics.CLAIMS.labels(outcome).inc(count)
    written = dict(WRITTEN)
    WRITTEN.clear()
    for outcome, count in written.items():
        metrics.COMMITS.labels(outcome).inc(count)
