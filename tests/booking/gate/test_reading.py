"""The gate's reader refuses what the API's readers refuse, and takes every claim that means one thing."""

import json
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.booking.gate.reading import read_claim
from app.core.problems import MalformedJson, ValidationFailed
from app.core.web.validation import ERRORS_MAX

RELEASE, PERSON, POOL = (str(uuid4()) for _ in range(3))
MEMBERS = {
    "release": f'"{RELEASE}"',
    "people": f'["{PERSON}"]',
    "choices": f'["{POOL}"]',
    "together": "false",
    "waitlist": "true",
}


def _escaped(name: str, index: int) -> str:
    return f"{name[:index]}\\u{ord(name[index]):04x}{name[index + 1 :]}"


@st.composite
def _written(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Return members by name as they are written: optional ones or not, in any order, some twice, some with escapes."""
    names = [*draw(st.permutations(["release", "people", "choices"]))]
    names += draw(st.lists(st.sampled_from(["together", "waitlist"]), unique=True))
    names += draw(st.lists(st.sampled_from(sorted(MEMBERS)), max_size=2))
    return [
        (name, _escaped(name, draw(st.integers(0, 5))) if draw(st.booleans()) else name)
        for name in draw(st.permutations(names))
    ]


@given(written=_written(), space=st.sampled_from(["", " ", "\n\t"]))
def test_a_claim_is_taken_exactly_if_no_name_comes_twice(written: list[tuple[str, str]], space: str) -> None:
    members = (f'"{text}"{space}:{space}{MEMBERS[name]}' for name, text in written)
    body = ("{" + f",{space}".join(members) + "}").encode()
    names = [name for name, _ in written]
    if len(set(names)) < len(names):
        with pytest.raises(MalformedJson) as refused:
            read_claim(body)
        assert [error.code for error in refused.value.errors] == ["duplicate_name"]
    else:
        claim = read_claim(body)
        assert (str(claim.release), claim.together) == (RELEASE, "together" not in names)


def _errors(body: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationFailed) as refused:
        read_claim(json.dumps(body).encode())
    return [(error.field, error.code) for error in refused.value.errors]


def test_no_more_faults_are_told_than_a_caller_can_mend_at_once() -> None:
    assert len(_errors({"release": RELEASE, "people": [5] * 100, "choices": [POOL]})) == ERRORS_MAX


@pytest.mark.parametrize("notation", ["{%s}", "urn:uuid:%s", "%s "])
def test_an_id_in_another_notation_is_named(notation: str) -> None:
    written = notation % PERSON
    assert _errors({"release": RELEASE, "people": [written], "choices": [POOL]}) == [("people[0]", "bad_format")]
