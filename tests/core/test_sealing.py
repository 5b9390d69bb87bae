"""Personal fields, sealed: what opens, what does not."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.ids import new_id
from app.core.sealing import SealBrokenError, Sealer

SEALER = Sealer("k" * 32)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200), st.uuids())
def test_what_was_sealed_opens_with_the_same_key_for_the_same_row(text: str, row_id: UUID) -> None:
    sealed = SEALER.seal(text, row_id=row_id)
    assert SEALER.open(sealed, row_id=row_id) == text
    assert Sealer("k" * 32).open(sealed, row_id=row_id) == text


def test_a_sealed_value_shows_nothing_of_the_text_and_never_looks_the_same_twice() -> None:
    row_id = new_id()
    first, second = SEALER.seal("小满小满", row_id=row_id), SEALER.seal("小满小满", row_id=row_id)
    assert first != second
    assert "小满".encode() not in first


def test_a_sealed_value_copied_to_another_row_does_not_open() -> None:
    sealed = SEALER.seal("小满", row_id=new_id())
    with pytest.raises(SealBrokenError):
        SEALER.open(sealed, row_id=new_id())


def test_another_key_opens_nothing() -> None:
    row_id = new_id()
    sealed = SEALER.seal("小满", row_id=row_id)
    for number in range(300):
        # Some of these share the byte that tells the key: the tag still tells.
        with pytest.raises(SealBrokenError):
            Sealer(f"{number:032}").open(sealed, row_id=row_id)


def test_every_changed_byte_and_every_missing_byte_is_noticed() -> None:
    row_id = new_id()
    sealed = SEALER.seal("小满", row_id=row_id)
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 1
        with pytest.raises(SealBrokenError):
            SEALER.open(bytes(altered), row_id=row_id)
        with pytest.raises(SealBrokenError):
            SEALER.open(sealed[:place], row_id=row_id)


def test_an_erased_field_does_not_open() -> None:
    with pytest.raises(SealBrokenError):
        SEALER.open(b"", row_id=new_id())
