"""What the script's refusals are told as: a problem for each of its letters."""

from typing import Final

import msgspec

from app.booking.gate import errors
from app.booking.gate.admission import ScriptAnswer
from app.booking.gate.records import ClaimRecord
from app.booking.gate.state import Release
from app.booking.gate.wire import booking_view
from app.core.clock import iso_of_ms
from app.core.ids import id_of
from app.core.problems import IdempotencyMismatch, Problem, jittered_ms

_NOT_FINAL_RETRY_MS: Final = 300
# What most hear at an opening.
SOLD_OUT_LETTER: Final = "G"
SOLD_OUT: Final = errors.SoldOut(extra={"final": True}, shared=True)


def refusal_of(release: Release, answer: ScriptAnswer) -> Problem:
    """Return the problem for a letter of the script that is no admission (see claim.lua).

    Raises `Contradiction` where what the script says cannot be.
    """
    if answer.code == SOLD_OUT_LETTER:
        return SOLD_OUT
    match answer.code:
        case "F" | "U":
            not_yet = errors.Full if answer.code == "F" else errors.Undecided
            return not_yet(retry_after_ms=jittered_ms(_NOT_FINAL_RETRY_MS), extra={"final": False})
        case "N":
            opens_ms = int.from_bytes(answer.detail, "little")
            return errors.NotOpenYet(
                retry_after_ms=max(opens_ms - answer.now_ms, 1),
                extra={"opens_at": iso_of_ms(opens_ms), "server_time": iso_of_ms(answer.now_ms)},
            )
        case "Z":
            return errors.Closed(extra={"closes_at": iso_of_ms(release.setup.closes_ms)})
        case "B":
            return _already_booked(release, answer.detail)
        case "L":
            whose = "person" if answer.detail[:1] == b"p" else "account"
            setup = release.setup
            limit: dict[str, object] = {
                "of": whose,
                "places": setup.person_limit if whose == "person" else setup.account_limit,
            }
            if whose == "person":
                limit["person"] = str(id_of(answer.detail[1:17]))
            return errors.LimitReached(extra={"limit": limit})
        case "X":
            return errors.PassExpired()
        case "M":
            return IdempotencyMismatch()
        case letter:
            raise errors.Contradiction(letter)


def _already_booked(release: Release, detail: bytes) -> errors.AlreadyBooked:
    holder, person = id_of(detail[:16]), detail[16:32]
    ordinal, packed = int.from_bytes(detail[32:34], "little"), detail[38:]
    if not packed:
        # A person holds a place under a claim that is not there.
        raise errors.Contradiction(str(holder))
    record = ClaimRecord.unpack(holder, packed)
    for entry in record.entries:
        if entry.person == person and entry.ordinal == ordinal:
            booking = msgspec.to_builtins(booking_view(release, record, entry))
            return errors.AlreadyBooked(extra={"claim": str(holder), "booking": booking})
    raise errors.Contradiction(str(holder))
