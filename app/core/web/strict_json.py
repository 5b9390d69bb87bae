"""Reads JSON as RFC 7493 (I-JSON) wants it exchanged: one meaning for every reader, or none.

The standard library takes more than that: NaN, names twice (the last wins), half a surrogate pair, UTF-16. What two
readers may understand differently is refused, so that a body means the same to us, to a proxy and to the database.
"""

import json
import math
import re
from email.message import Message
from typing import Final, NoReturn

from app.core.field_codes import sentence_of
from app.core.problems import FieldError, MalformedJson

# Our deepest body has four levels.
DEPTH_MAX: Final = 16
# A signed 64-bit integer has at most this many; no field takes more, and no reader keeps more exactly.
INTEGER_CHARACTERS_MAX: Final = 20

_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_OPENING: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def is_json(content_type: str | None) -> bool:
    """Tell whether the header names JSON in UTF-8, which is the only form that JSON has (RFC 8259, section 8.1)."""
    if content_type is None:
        return False
    message = Message()
    message["content-type"] = content_type
    charset = message.get_content_charset("utf-8")
    return message.get_content_type() == "application/json" and charset == "utf-8"


def check_json(body: bytes) -> None:
    """Raise `MalformedJson`, with the position in characters where one is known, unless the body is sound JSON."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _malformed("not_utf_8", position=error.start) from None
    _check_depth(text)
    try:
        value: object = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _malformed(
            "syntax", f"{error.msg} at {error.pos}.", f"第 {error.pos} 个字符处有误。", position=error.pos
        ) from None
    if _SURROGATE_ESCAPE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _malformed("bad_text", "A text has half a surrogate pair.", "文本包含不成对的代理字符。") from None


def _check_depth(text: str) -> None:
    depth = 0
    for match in _OPENING.finditer(text):
        mark = match.group()
        if mark in "[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise _malformed("too_deep", limit=DEPTH_MAX, position=match.start())
        elif mark in "]}":
            depth -= 1


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _malformed("duplicate_name")
    return members


def _integer(text: str) -> int:
    if len(text) > INTEGER_CHARACTERS_MAX:
        raise _malformed("number_too_long")
    return int(text)


def _fraction(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _malformed("not_finite", "A number is too large.", "数值过大。")
    return number


def _constant(_text: str) -> NoReturn:
    raise _malformed("not_finite", "JSON has no NaN and no Infinity.", "JSON 不支持 NaN 和 Infinity。")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_distinct, parse_int=_integer, parse_float=_fraction, parse_constant=_constant
)


def _malformed(
    code: str, detail_en: str = "", detail_zh: str = "", *, limit: object = None, position: int | None = None
) -> MalformedJson:
    sentence = sentence_of(code)
    return MalformedJson(
        detail_en or sentence.told("en", limit),
        detail_zh or sentence.told("zh-CN", limit),
        errors=[FieldError("body", code, limit)],
        extra={} if position is None else {"position": position},
    )
