"""The quick way to an order takes nothing that the careful way refuses, and makes the same of what it takes."""

import json
import struct
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from app.booking.gate.admission import Order
from app.booking.gate.orders import OrderBook, id_bytes
from app.booking.gate.passes import Pass, PassPerson, mask_of
from app.booking.gate.reading import read_claim
from app.booking.gate.state import PoolSetup, Release, ReleaseSetup
from app.core.problems import Problem
from app.core.settings import Settings
from tests.booking.gate.builders import FAR_FUTURE_MS

PEOPLE: Final = [UUID(int=0xA1 << 120 | n) for n in range(5)]
POOLS: Final = [UUID(int=0xB2 << 120 | n) for n in range(4)]
RELEASE, OTHER_RELEASE, ACCOUNT, CLAIM = (UUID(int=0xC3 << 120 | n) for n in range(4))
PEOPLE_LIMIT, CHOICES_LIMIT = 3, 3
# The last of the people is on nobody's pass; the last of the pools is of no release.
MAY_CLAIM: Final = [{0, 1, 2}, {0, 1, 2}, {0}, set[int]()]
DELAYS_MS: Final = [0, 500, 20, 0]
SETUP: Final = ReleaseSetup(
    RELEASE.bytes, 1, 0, FAR_FUTURE_MS, 10, 20, tuple(PoolSetup(pool.bytes, 9) for pool in POOLS[:-1])
)
CONTENTS: Final = Pass.of(
    RELEASE,
    ACCOUNT,
    FAR_FUTURE_MS - 1,
    tuple(
        PassPerson(person.bytes, mask_of(pools), delay_ms)
        for person, pools, delay_ms in zip(PEOPLE[:-1], MAY_CLAIM, DELAYS_MS, strict=True)
    ),
)


@pytest.fixture(scope="module")
def book() -> OrderBook:
    limits = {"people_per_claim_limit": PEOPLE_LIMIT, "choices_per_claim_limit": CHOICES_LIMIT}
    return OrderBook(Settings.model_construct(**limits))  # pyright: ignore[reportArgumentType] - two of its fields do


Body = dict[str, Any]
Draw = st.DrawFn


def _other_notation(draw: Draw, id_: str) -> str:
    """Return an id in another notation, or something as long as an id that is none."""
    return draw(
        st.sampled_from(
            [id_.upper(), id_.replace("-", ""), f"{{{id_}}}", f"{id_} ", f"{id_[:-2]} 1", f"urn:uuid:{id_}"]
        )
    )


def _spoil_people(draw: Draw, body: Body) -> None:
    people: list[str] = body["people"]
    match draw(st.sampled_from(["twice", "stranger", "may not", "nobody", "too many", "notation", "no text"])):
        case "twice":
            people.append(people[0])
        case "stranger":
            people[-1] = str(PEOPLE[-1])
        case "may not":
            people[-1] = str(PEOPLE[2])
        case "nobody":
            people.clear()
        case "too many":
            people[:] = map(str, [*PEOPLE[:3], PEOPLE[0]])
        case "notation":
            people[-1] = _other_notation(draw, people[-1])
        case _:
            body["people"] = [*people, draw(st.sampled_from([None, 5, True]))]


def _spoil_choices(draw: Draw, body: Body) -> None:
    choices: list[str] = body["choices"]
    match draw(st.sampled_from(["twice", "unknown", "none", "too many", "notation"])):
        case "twice":
            choices.append(choices[0])
        case "unknown":
            choices[-1] = str(POOLS[-1])
        case "none":
            choices.clear()
        case "too many":
            choices[:] = map(str, POOLS)
        case _:
            choices[-1] = _other_notation(draw, choices[-1])


def _spoil_the_rest(draw: Draw, body: Body) -> None:
    match draw(st.sampled_from(["release", "notation", "flag", "type", "unknown", "missing"])):
        case "release":
            body["release"] = str(OTHER_RELEASE)
        case "notation":
            body["release"] = _other_notation(draw, body["release"])
        case "flag":
            body[draw(st.sampled_from(["together", "waitlist"]))] = draw(st.sampled_from([None, 1, "true"]))
        case "type":
            body[draw(st.sampled_from(sorted(body)))] = draw(st.sampled_from([None, 5, "x", {"a": 1}, "a:b"]))
        case "unknown":
            body[draw(st.sampled_from(["colour", "people ", "a:b"]))] = 1
        case _:
            del body[draw(st.sampled_from(sorted(body)))]


def _spoil_text(draw: Draw, members: list[str]) -> None:
    match draw(st.sampled_from(["twice", "twice and other", "escape"])):
        case "twice":
            members.append(draw(st.sampled_from(members)))
        case "twice and other":
            members.append(draw(st.sampled_from([f'"people":["{PEOPLE[1]}"]', '"waitlist":true', '"together":false'])))
        case _:
            members[-1] = members[-1].replace("e", "\\u0065", 1)


@st.composite
def _bodies(draw: Draw) -> bytes:
    """Return claims that are sound, and claims that are sound but for one thing or two."""
    ids = [
        draw(st.lists(st.sampled_from([str(id_) for id_ in of]), min_size=1, max_size=3, unique=True))
        for of in (PEOPLE[:2], POOLS[:3])
    ]
    body: Body = {"release": str(RELEASE), "people": ids[0], "choices": ids[1]}
    body |= draw(st.fixed_dictionaries({}, optional={"together": st.booleans(), "waitlist": st.booleans()}))
    spoil = draw(st.sampled_from([None, _spoil_people, _spoil_choices, _spoil_the_rest]))
    if spoil:
        spoil(draw, body)
    members = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in body.items()]
    if draw(st.integers(0, 4)) == 0:
        _spoil_text(draw, members)
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    whole = ("{" + space + f",{space}".join(draw(st.permutations(members))) + space + "}").encode()
    if draw(st.integers(0, 9)) == 0:
        return draw(
            st.sampled_from([whole[:-1], whole + b"x", b"\xef\xbb\xbf" + whole, whole.replace(b"a", b"\xe9", 1), b""])
        )
    return whole


def _carefully(book: OrderBook, release: Release, body: bytes) -> Order | Problem:
    try:
        return book.carefully(CLAIM.bytes, book.read(body, CONTENTS), body, CONTENTS, release)
    except Problem as problem:
        return problem


@bounds(max_examples=1_000, deadline=None)
@given(body=_bodies())
def test_the_quick_way_makes_the_order_that_the_careful_way_makes_or_none(book: OrderBook, body: bytes) -> None:
    release = Release(SETUP, "nobody")
    quick = book.quickly(CLAIM.bytes, body, CONTENTS, release)
    careful = _carefully(book, release, body)
    if isinstance(careful, Problem):
        assert quick is None
    else:
        # Where all is written as a phone of ours writes it, it is taken.
        claim = read_claim(body)
        ids = (claim.release, *claim.people, *claim.choices)
        is_plain = b"\\" not in body and all(f'"{id_}"'.encode() in body for id_ in ids)
        assert quick == careful if is_plain else quick in (None, careful)


@given(
    people=st.lists(st.sampled_from(PEOPLE[:2]), min_size=1, unique=True),
    choices=st.lists(st.sampled_from(POOLS[:3]), min_size=1, unique=True),
    together=st.booleans(),
    waitlist=st.booleans(),
)
def test_an_order_is_packed_as_the_script_reads_it(
    book: OrderBook, people: list[UUID], choices: list[UUID], *, together: bool, waitlist: bool
) -> None:
    body = {
        "release": str(RELEASE),
        "people": [str(person) for person in people],
        "choices": [str(pool) for pool in choices],
        "together": together,
        "waitlist": waitlist,
    }
    order = book.quickly(CLAIM.bytes, json.dumps(body).encode(), CONTENTS, Release(SETUP, "nobody"))
    assert order is not None
    ordinals = [POOLS.index(pool) for pool in choices]
    assert (order.claim_id, order.wanted) == (CLAIM.bytes, sum(1 << ordinal for ordinal in ordinals))
    head, rest = order.packed[:55], order.packed[55:]
    claim_id, _, account, expires_ms, delay_ms, *counts = struct.unpack("<16s8s16sQIBBB", head)
    assert (claim_id, account, expires_ms) == (CLAIM.bytes, ACCOUNT.bytes, FAR_FUTURE_MS - 1)
    # Who opens last opens for all of them.
    assert delay_ms == max(DELAYS_MS[PEOPLE.index(person)] for person in people)
    assert counts == [together + 2 * waitlist, len(people), len(choices)]
    assert rest == b"".join(person.bytes for person in people) + struct.pack(f"<{len(ordinals)}H", *ordinals)


def test_whatever_makes_two_claims_differ_makes_their_fingerprints_differ(book: OrderBook) -> None:
    plain: dict[str, Any] = {"release": str(RELEASE), "people": [str(PEOPLE[0])], "choices": [str(POOLS[0])]}
    two_people, two_pools = [str(person) for person in PEOPLE[:2]], [str(pool) for pool in POOLS[:2]]
    others = [
        {"people": two_people},
        {"people": two_people[::-1]},
        {"people": two_people[1:]},
        {"choices": two_pools},
        {"choices": two_pools[::-1]},
        {"choices": two_pools[1:]},
        {"together": False},
        {"waitlist": True},
        {"together": False, "waitlist": True},
    ]
    release = Release(SETUP, "nobody")
    orders = [book.quickly(CLAIM.bytes, json.dumps(plain | other).encode(), CONTENTS, release) for other in others]
    same = [
        book.quickly(bytes(16), json.dumps(plain | other).encode(), CONTENTS, release)
        for other in ({}, {"together": True}, {"waitlist": False})
    ]
    prints = [order.packed[16:24] for order in (*orders, same[0]) if order]
    assert len(set(prints)) == len(others) + 1
    # And nothing else does: not the claim's id, nor a default that is written out.
    assert {order.packed[16:24] for order in same if order} == {prints[-1]}


@given(id_=st.uuids(), at=st.integers(0, 35), sign=st.sampled_from(" -_xg٣+\0"))
def test_an_id_is_read_in_one_form_and_in_no_other(id_: UUID, at: int, sign: str) -> None:
    text = str(id_)
    assert id_bytes(text) == id_bytes(text.upper()) == id_.bytes
    spoilt = text[:at] + sign + text[at + 1 :]
    assert id_bytes(spoilt) == (id_.bytes if spoilt == text else b"")
    for other in (text[1:], text + "0", id_.hex, f"{{{id_}}}", id_.urn, ""):
        assert id_bytes(other) == b""
