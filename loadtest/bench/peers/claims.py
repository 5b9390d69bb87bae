"""What the peers in Python have in common: the claim that they read, the check of its pass, and how they refuse.

Written as a service of this kind is written every day: pydantic reads the body, the standard library checks the
signature at every request, msgspec reads what was signed. Two things the peers leave out, to their own advantage: a
claim is always placed as a whole, and nobody can wait.
"""

import hmac
import time
from base64 import urlsafe_b64decode
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from app.core.problems import PROBLEM_MEDIA_TYPE
from loadtest.bench.peers import Surroundings

_SIGNATURE_BYTES: Final = 32
_PEOPLE_MAX: Final = 5
_CHOICES_MAX: Final = 10


class ClaimBody(BaseModel):
    """What a phone asks for."""

    model_config = ConfigDict(extra="forbid")

    release: UUID
    people: Annotated[list[UUID], Field(min_length=1, max_length=_PEOPLE_MAX)]
    choices: Annotated[list[UUID], Field(min_length=1, max_length=_CHOICES_MAX)]
    together: bool = True
    waitlist: bool = False


class BookingView(BaseModel):
    """One person's place."""

    person: UUID
    pool: UUID
    status: Literal["confirmed"] = "confirmed"


class ClaimView(BaseModel):
    """A claim that won."""

    claim: UUID
    state: Literal["confirmed"] = "confirmed"
    bookings: list[BookingView]

    @classmethod
    def of(cls, claim_id: UUID, pool: UUID, people: list[UUID]) -> "ClaimView":
        """Return the answer to a claim whose people all have a place in this pool."""
        return cls(claim=claim_id, bookings=[BookingView(person=person, pool=pool) for person in people])


class RefusedError(Exception):
    """The claim must not even be tried."""

    def __init__(self, status: int, code: str, title: str) -> None:
        super().__init__(code)
        self.status, self.code, self.title = status, code, title

    def answer(self) -> JSONResponse:
        """Return the problem document that says so."""
        return refusal(self.status, self.code, self.title)


class _PassPerson(msgspec.Struct, array_like=True):
    person: bytes
    pools: bytes
    delay_ms: int


class _Pass(msgspec.Struct, array_like=True):
    version: int
    release: bytes
    account: bytes
    expires_ms: int
    people: list[_PassPerson]


class PassCheck:
    """Checks that a claim is covered by the pass that came with it."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._key = surroundings.pass_key.encode()
        self._bits = {pool_id: 1 << ordinal for ordinal, pool_id in enumerate(surroundings.pool_ids)}

    def check(self, authorization: str, claim: ClaimBody) -> None:
        """Raise `RefusedError` unless a genuine pass lets all these people claim all these pools."""
        contents = self._contents(authorization)
        if contents.expires_ms <= time.time() * 1000:
            raise RefusedError(403, "pass_expired", "This pass has expired")
        if claim.release.bytes != contents.release:
            raise RefusedError(403, "pass_invalid", "The pass is for another release")
        if len(set(claim.people)) < len(claim.people):
            raise RefusedError(422, "duplicate_person", "The same person is named twice")
        wanted = 0
        for pool_id in claim.choices:
            if pool_id not in self._bits:
                raise RefusedError(422, "unknown_pool", "One of these pools does not belong to this release")
            wanted |= self._bits[pool_id]
        allowed = {person.person: int.from_bytes(person.pools, "little") for person in contents.people}
        for person_id in claim.people:
            if wanted & ~allowed.get(person_id.bytes, 0):
                raise RefusedError(403, "not_eligible", "One of these people may not claim one of these pools")

    def _contents(self, authorization: str) -> _Pass:
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "pass":
            raise RefusedError(401, "not_authenticated", "Send the pass of this release")
        try:
            signed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except ValueError:
            signed = b""
        body, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(hmac.digest(self._key, body, "sha256"), signature):
            raise RefusedError(403, "pass_invalid", "This pass is not valid for this claim")
        return msgspec.msgpack.decode(body, type=_Pass)


def refusal(status: int, code: str, title: str) -> JSONResponse:
    """Return a problem document."""
    return JSONResponse(
        {"type": f"/docs/errors#{code}", "title": title, "status": status, "code": code},
        status_code=status,
        media_type=PROBLEM_MEDIA_TYPE,
    )


def sold_out() -> JSONResponse:
    """Return what most hear."""
    return refusal(409, "sold_out", "Every place is taken")


def already_booked() -> JSONResponse:
    """Return what somebody hears who has a place already."""
    return refusal(409, "already_booked", "One of these people is booked already")
