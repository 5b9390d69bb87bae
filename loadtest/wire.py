"""The API's shapes as a phone reads them: only the members a phone needs, everything else let through.

msgspec decodes straight into these, which costs about a microsecond an answer. A member that is missing takes its
default, so that a refusal, a booking and a place in the queue are one shape to the caller.
"""

from datetime import datetime
from typing import Final, TypeVar

import msgspec

from loadtest.http1 import Answer

Shape = TypeVar("Shape")


class BookingBody(msgspec.Struct, frozen=True):
    """One person's place, or place in the queue."""

    person: str = ""
    pool: str = ""
    place_no: int | None = None
    status: str = ""
    position: int | None = None


class ClaimBody(msgspec.Struct, frozen=True):
    """What the gate says about a claim: a booking, a place in the queue, "not known yet", or a problem document."""

    claim: str = ""
    state: str = ""
    code: str = ""
    final: bool | None = None
    retry_after_ms: float | None = None
    seq: int | None = None
    decided_at: datetime | None = None
    bookings: tuple[BookingBody, ...] = ()


class ClaimPage(msgspec.Struct, frozen=True):
    """One page of an account's claims."""

    items: tuple[ClaimBody, ...]
    next: str | None = None


class PoolLevel(msgspec.Struct, frozen=True):
    """How full one pool is."""

    id: str
    capacity: int = 0
    left: int = 0
    waiting: int = 0
    state: str = ""


class Availability(msgspec.Struct, frozen=True):
    """How full a release is."""

    pools: tuple[PoolLevel, ...] = ()


class TimeBody(msgspec.Struct, frozen=True):
    """The server's clock."""

    now_ms: float


class Account(msgspec.Struct, frozen=True):
    """Who signed in, and what the account may do."""

    id: str
    roles: tuple[str, ...] = ()


class SignedIn(msgspec.Struct, frozen=True):
    """A session."""

    access_token: str
    account: Account


class Identified(msgspec.Struct, frozen=True):
    """Anything that was just made."""

    id: str


class PersonPass(msgspec.Struct, frozen=True):
    """What one person may claim."""

    id: str
    pools: tuple[str, ...] = ()


class PassBody(msgspec.Struct, frozen=True):
    """A signed pass."""

    # The member's name in the API; "pass" is a keyword here.
    token: str = msgspec.field(name="pass")
    people: tuple[PersonPass, ...] = ()


class PoolBody(msgspec.Struct, frozen=True):
    """One pool of a release."""

    id: str
    title: str
    capacity: int
    starts_at: datetime
    ends_at: datetime


class ReleaseBody(msgspec.Struct, frozen=True):
    """A release as the catalogue shows it."""

    id: str
    title: str
    opens_at: datetime
    person_limit: int
    account_limit: int
    pools: tuple[PoolBody, ...] = ()
    state: str = ""
    closes_at: datetime | None = None


class ReleaseListed(msgspec.Struct, frozen=True):
    """A release in a list."""

    id: str
    opens_at: datetime


class ReleasePage(msgspec.Struct, frozen=True):
    """A page of releases."""

    items: tuple[ReleaseListed, ...] = ()


class StationPage(msgspec.Struct, frozen=True):
    """A page of stations."""

    items: tuple[Identified, ...] = ()


class GateCounts(msgspec.Struct, frozen=True):
    """What the gate counts in a release."""

    free: int
    held: int
    pending: int
    waiting: int


class Audit(msgspec.Struct, frozen=True):
    """What PostgreSQL and the gate hold of a release, read for an operator."""

    release: str
    places: int
    held: int
    waiting: int
    free: int
    double_held: int
    over_capacity: int
    consistent: bool
    # Absent while the gate has no state of the release (never opened, or swept long after it closed).
    gate: GateCounts | None = None


class ProblemBody(msgspec.Struct, frozen=True):
    """Why the server refused (RFC 9457)."""

    code: str
    detail: str = ""


class UnreadableError(Exception):
    """An answer is not what the API promises."""


claim_decoder: Final = msgspec.json.Decoder(ClaimBody)
availability_decoder: Final = msgspec.json.Decoder(Availability)
encode: Final = msgspec.json.Encoder().encode


def read(answer: Answer, shape: type[Shape], *, expected: tuple[int, ...] = (200, 201)) -> Shape:
    """Decode a good answer. Raises `UnreadableError`, with what the answer says, for any other."""
    if answer.status not in expected:
        raise UnreadableError(f"status {answer.status}, {_in_words(answer)}")
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except msgspec.DecodeError as error:
        raise UnreadableError(f"status {answer.status}, {error}: {answer.body[:300]!r}") from error


def _in_words(answer: Answer) -> str:
    """Return what a refusal says; of what is no problem document, as a proxy's page, the beginning."""
    try:
        problem = msgspec.json.decode(answer.body, type=ProblemBody)
    except msgspec.DecodeError:
        return answer.body[:300].decode(errors="replace") or "without a word"
    return f"{problem.code}: {problem.detail}" if problem.detail else problem.code
