"""Makes an order of what a phone sent: quickly where all is as it should be, carefully where it is not, to say what.

The quick way compares ids as they are written and builds no objects of them. It gives up at the first thing that it
did not expect, and never refuses anything: whatever it gives up on is read again by the careful way, which decides.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final
from uuid import UUID

import msgspec

from app.booking.gate.admission import HEAD, Order
from app.booking.gate.errors import (
    DuplicateChoice,
    DuplicatePerson,
    NotEligible,
    PassInvalid,
    TooManyPeople,
    UnknownPool,
)
from app.booking.gate.passes import Pass, PassPerson
from app.booking.gate.reading import may_name_twice, read_claim
from app.booking.gate.state import Release
from app.booking.gate.wire import ClaimBody
from app.core.problems import FieldError, ValidationFailed
from app.core.settings import Settings

_ID_CHARACTERS: Final = 36
# At 8, 13, 18 and 23.
_HYPHENS: Final = slice(8, 24, 5)


class _WrittenClaim(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`ClaimBody`, with ids as they are written where they are only compared."""

    release: str
    people: list[str]
    choices: list[str]
    together: bool = True
    waitlist: bool = False


_decode: Final = msgspec.json.Decoder(_WrittenClaim).decode


def id_bytes(text: str) -> bytes:
    """Return the 16 bytes of an id in the form of RFC 9562 (8-4-4-4-12 hexadecimal digits); empty for anything else."""
    if len(text) != _ID_CHARACTERS or text[_HYPHENS] != "----":
        return b""
    try:
        decoded = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        return b""
    # Shorter where it had blanks, which `fromhex` skips, or more hyphens.
    return decoded if len(decoded) == 16 else b""  # noqa: PLR2004 - the size of an id


class OrderBook:
    """Makes orders. Bounds how many people and choices a claim may have."""

    def __init__(self, settings: Settings) -> None:
        self._people_limit = settings.people_per_claim_limit
        self._choices_limit = settings.choices_per_claim_limit

    def quickly(self, claim_id: bytes, body: bytes, contents: Pass, release: Release) -> Order | None:
        """Return the order of a claim in which nothing is out of the ordinary, or None."""
        try:
            claim = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        texts = claim.choices
        if (
            claim.release != release.name
            or not 0 < len(claim.people) <= self._people_limit
            or not 0 < len(texts) <= self._choices_limit
            or may_name_twice(body)
        ):
            return None
        wanted, wishes, marks = 0, b"", release.marks
        for text in texts:
            mark = marks.get(text)
            # Some other pool, or the same once more.
            if mark is None or wanted & mark[0]:
                return None
            wanted |= mark[0]
            wishes += mark[1]
        people = _eligible(claim.people, contents, wanted)
        return None if people is None else _order(claim_id, claim, body, contents, people, wanted, wishes)

    def read(self, body: bytes, contents: Pass) -> ClaimBody:
        """Return a claim for the release of the pass, all of it in form.

        Raises `MalformedJson`, `ValidationFailed` and its kinds, and `PassInvalid`.
        """
        claim = read_claim(body)
        for field, items, limit, too_long, twice in (
            ("people", claim.people, self._people_limit, TooManyPeople, DuplicatePerson),
            ("choices", claim.choices, self._choices_limit, ValidationFailed, DuplicateChoice),
        ):
            if not items:
                raise ValidationFailed(errors=[FieldError(field, "too_short", 1)])
            if len(items) > limit:
                raise too_long(errors=[FieldError(field, "too_long", limit)])
            if errors := repeated(field, items):
                raise twice(errors=errors)
        if claim.release.bytes != contents.release:
            raise PassInvalid("The pass is for another release.", "该凭证属于另一次放号。")
        return claim

    def carefully(self, claim_id: bytes, claim: ClaimBody, body: bytes, contents: Pass, release: Release) -> Order:
        """Return the order of a claim that was read from this body. Raises `UnknownPool` and `NotEligible`."""
        wanted, wishes, bits = 0, b"", list[int]()
        for index, pool_id in enumerate(claim.choices):
            mark = release.marks.get(str(pool_id))
            if mark is None:
                raise UnknownPool(errors=[FieldError(f"choices[{index}]", "unknown_pool")])
            wanted |= mark[0]
            wishes += mark[1]
            bits.append(mark[0])
        people: list[PassPerson] = []
        for person_id in claim.people:
            person = contents.person(person_id.bytes)
            if person is None:
                raise NotEligible(
                    "The pass does not name this person.", "凭证中没有该人员。", extra={"person": str(person_id)}
                )
            for pool_id, bit in zip(claim.choices, bits, strict=True):
                if not person.may_claim(bit):
                    raise NotEligible(extra={"person": str(person_id), "pool": str(pool_id)})
            people.append(person)
        return _order(claim_id, claim, body, contents, people, wanted, wishes)


def _eligible(texts: Sequence[str], contents: Pass, wanted: int) -> list[PassPerson] | None:
    """Return the people of a claim where all are named once, by the pass too, and may claim all that is wanted."""
    people: list[PassPerson] = []
    for text in texts:
        # What is no id is nobody's.
        person = contents.person(id_bytes(text))
        if person is None or not person.may_claim(wanted) or person in people:
            return None
        people.append(person)
    return people


def _order(
    claim_id: bytes,
    claim: ClaimBody | _WrittenClaim,
    body: bytes,
    contents: Pass,
    people: list[PassPerson],
    wanted: int,
    wishes: bytes,
) -> Order:
    delay_ms = 0
    named = b""
    for person in people:
        named += person.person
        # Not max(), which is a call for each claim.
        if person.delay_ms > delay_ms:  # noqa: PLR1730 - as said
            delay_ms = person.delay_ms
    named += wishes
    flags = claim.together | claim.waitlist << 1
    # What makes two requests under one id the same. It is kept for as long as the claim: its form must not change.
    hashed = _fingerprinting(flags, len(people)).copy()
    hashed.update(contents.release + contents.account + named)
    head = HEAD.pack(
        claim_id,
        hashed.digest(),
        contents.account,
        contents.expires_ms,
        delay_ms,
        flags,
        len(people),
        len(claim.choices),
    )
    return Order(claim_id, wanted, head + named, body)


@lru_cache(maxsize=256)
def _fingerprinting(flags: int, people: int) -> blake2b:
    """Return what is to be copied for a fingerprint: to begin anew takes longer than all the rest of it."""
    return blake2b(digest_size=8, person=bytes((flags, people)))


def repeated(field: str, items: Collection[UUID]) -> list[FieldError]:
    """Return an error for each item that stood in the list before; empty where all differ."""
    if len(set(items)) == len(items):
        return []
    seen: set[UUID] = set()
    errors: list[FieldError] = []
    for index, item in enumerate(items):
        if item in seen:
            errors.append(FieldError(f"{field}[{index}]", "duplicate"))
        seen.add(item)
    return errors
