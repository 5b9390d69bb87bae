"""Which texts say something, and which only seem to."""

import pytest
from pydantic import TypeAdapter, ValidationError

from app.core.schemas import LongText, ShortText

SHORT: TypeAdapter[str] = TypeAdapter(ShortText)
LONG: TypeAdapter[str] = TypeAdapter(LongText)

INVISIBLE = {
    "spaces": "   ",
    "a no-break space": "\u00a0",
    "an ideographic space": "\u3000",
    "a line separator": "\u2028",
    "a zero-width space": "\u200b",
    "a zero-width joiner": "\u200d",
    "a word joiner": "\u2060",
    "a byte-order mark": "\ufeff",
    "a soft hyphen": "\u00ad",
    "a mark of direction": "\u200e",
    "a Mongolian vowel separator": "\u180e",
    "a combining grapheme joiner": "\u034f",
    "a variation selector": "\ufe0f",
    "a supplementary variation selector": "\U000e0100",
    "a tag": "\U000e0041",
    "an unassigned ignorable": "\U000e0fff",
    "another unassigned ignorable": "\ufff0",
    "a Hangul filler": "\u3164",
    "a half-width Hangul filler": "\uffa0",
    "a Hangul choseong filler": "\u115f",
    "a Hangul jungseong filler": "\u1160",
    "a Khmer inherent vowel": "\u17b4",
    "a blank Braille pattern": "\u2800",
    "a note without a head": "\U0001d159",
    "a mark that has nothing to stand on": "\u0301",
    "a mark around nothing": "\u20dd",
    "several of them": " \u200b\u3164\u2060\ufe0f ",
}
VISIBLE = {
    "a Chinese name": "小明",
    "a letter with a mark": "e\u0301",
    "a vowel sign on its letter": "กิ",
    "an emoji": "🐼",
    "a family, joined": "👨\u200d👩\u200d👧",
    "a keycap": "1\ufe0f\u20e3",
    "a flag of tags": "🏴\U000e0067\U000e0062\U000e007f",
    "an emoji that this Python does not know": "\U0001fae8",
    "a private character": "\ue000",
    "a full stop": "。",
    "a name among spaces": "\u200b 小明 ",
    "a Braille letter": "\u2801",
}


@pytest.mark.parametrize("name", INVISIBLE)
def test_a_text_that_shows_nothing_is_blank(name: str) -> None:
    for kind in (SHORT, LONG):
        with pytest.raises(ValidationError) as refused:
            kind.validate_python(INVISIBLE[name])
        assert [error["type"] for error in refused.value.errors()] == ["blank"]


@pytest.mark.parametrize("name", VISIBLE)
def test_a_text_that_shows_something_is_taken_as_it_is(name: str) -> None:
    assert SHORT.validate_python(VISIBLE[name]) == VISIBLE[name]
