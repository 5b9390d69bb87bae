"""Reads JSON as RFC 7493 (I-JSON) wants it exchanged: one meaning for every reader, or none.

The standard library takes more than that: NaN, names twice (the last wins), half a surrogate pair, UTF-16. What two
readers may understand differently is refused, so that a body means the same to us, to a proxy and to the database.
"""

import json
import math
import re
from typing import Final, NoReturn

from app.core.problems import FieldError, MalformedJson

# Our deepest body has four levels.
DEPTH_MAX: Final = 16
# A signed 64-bit integer has at most this many; no field takes more, and no reader keeps more exactly.
INTEGER_CHARACTERS_MAX: Final = 20

_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_OPENING: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def check_json(body: bytes) -> None:
    """Raise `MalformedJson`, with the position in characters where one is known, unless the body is sound JSON."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _malformed("not_utf_8", "The body is not UTF-8.", "请求体不是 UTF-8。", error.start) from None
    _check_depth(text)
    try:
        value: object = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _malformed(
            "syntax", f"{error.msg} at {error.pos}.", f"第 {error.pos} 个字符处有误。", error.pos
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
                raise _malformed(
                    "too_deep", f"Nested deeper than {DEPTH_MAX}.", f"嵌套超过 {DEPTH_MAX} 层。", match.start()
                )
        elif mark in "]}":
            depth -= 1


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _malformed("duplicate_name", "An object has the same name twice.", "对象中有重复的字段名。")
    return members


def _integer(text: str) -> int:
    if len(text) > INTEGER_CHARACTERS_MAX:
        raise _malformed("number_too_long", "A number has too many digits.", "数字位数过多。")
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


def _malformed(code: str, detail_en: str, detail_zh: str, position: int | None = None) -> MalformedJson:
    return MalformedJson(
        detail_en,
        detail_zh,
        errors=[FieldError("body", code, detail_en)],
        extra={} if position is None else {"position": position},
    )
