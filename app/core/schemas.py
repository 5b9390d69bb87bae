"""The parts that request and response bodies are made of: bounded text, aware instants, numbers that are numbers."""

import re
import types
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from app.core.clock import iso

# RFC 3339, section 5.6. The offset is optional here only so that its absence can be told apart.
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)?")
_YEAR_MIN: Final = 1900
_YEAR_MAX: Final = 2200
# Marks that turn the direction of what follows: a title could show something else than it says.
_BIDI_CONTROLS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Characters that show nothing: `_is_visible` cannot tell these by their category. Fillers of Hangul, the empty pattern
# of Braille, the note without a head, and what Unicode sets aside to be ignored before it is given a meaning
# (Default_Ignorable_Code_Point, DerivedCoreProperties.txt).
_BLANKS: Final = frozenset("\u115f\u1160\u2065\u2800\u3164\uffa0\U0001d159")
_IGNORABLE: Final = (range(0xFFF0, 0xFFF9), range(0xE0000, 0xE1000))
# Controls, formats, surrogates, spaces and line ends, and marks that need something to stand on.
_INVISIBLE_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Mn", "Me"})
# PostgreSQL's integer.
_INTEGER_MAX: Final = 2**31 - 1


def _plain_text(text: str, *, lines: bool) -> str:
    if "\x00" in text:
        raise PydanticCustomError("nul_character", "NUL is not allowed")
    for character in text:
        if character in _BIDI_CONTROLS or (
            unicodedata.category(character) == "Cc" and not (lines and character in "\n\r\t")
        ):
            raise PydanticCustomError("control_character", "control characters are not allowed")
    if text and not any(map(_is_visible, text)):
        raise PydanticCustomError("blank", "must not be blank")
    return text


def _is_visible(character: str) -> bool:
    """Tell whether a character shows anything by itself; one that this Python does not know yet may be an emoji."""
    return (
        unicodedata.category(character) not in _INVISIBLE_CATEGORIES
        and character not in _BLANKS
        and not any(ord(character) in ignorable for ignorable in _IGNORABLE)
    )


def _one_line(text: str) -> str:
    return _plain_text(text, lines=False)


def _some_lines(text: str) -> str:
    return _plain_text(text, lines=True)


def _written_instant(value: object) -> object:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("wrong_type", "must be a text")
    match = _INSTANT.fullmatch(value)
    if match is None:
        raise PydanticCustomError("bad_format", "must be an RFC 3339 time")
    if match.group(3) is None:
        raise PydanticCustomError("no_time_zone", "must have an offset")
    return value


def _known_instant(instant: datetime) -> datetime:
    if instant.utcoffset() is None:
        raise PydanticCustomError("no_time_zone", "must have an offset")
    if not _YEAR_MIN < instant.year < _YEAR_MAX:
        raise PydanticCustomError("bad_format", "the year is out of range")
    return instant.astimezone(UTC)


# Text of one line, refusing NUL, other control characters and the blank.
Code = Annotated[str, StringConstraints(min_length=1, max_length=32), AfterValidator(_one_line)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=40), AfterValidator(_one_line)]
Title = Annotated[str, StringConstraints(min_length=1, max_length=120), AfterValidator(_one_line)]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=300), AfterValidator(_one_line)]
Token = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[\x21-\x7e]+$")]
# Text of several lines.
LongText = Annotated[str, StringConstraints(max_length=4_000), AfterValidator(_some_lines)]

# A whole number as PostgreSQL's integer holds it; 5.0, "5" and true are refused.
Count = Annotated[int, Strict(), Field(ge=0, le=_INTEGER_MAX)]

# A time with its offset, kept in UTC. One without is refused with the code `no_time_zone`.
AwareInstant = Annotated[
    datetime,
    BeforeValidator(_written_instant),
    AfterValidator(_known_instant),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-07-01T09:00:00+08:00"]}),
]
_INSTANT_SCHEMA: Final = WithJsonSchema(
    {"type": "string", "format": "date-time", "examples": ["2026-07-01T09:00:00.000+08:00"]}
)
_IN_TOWN: Final = PlainSerializer(iso, return_type=Annotated[str, _INSTANT_SCHEMA], when_used="json-unless-none")
# A time as it is answered: RFC 3339 in the town's zone, to the millisecond.
TownInstant = Annotated[datetime, _IN_TOWN]


class RequestModel(BaseModel):
    """The parent of every request body: unknown fields are refused, and numbers and booleans must be such in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_options: Any) -> None:
        """Make plain numbers and booleans strict: pydantic would read "5", 5.0 and true as 5.

        A whole model cannot be strict here, since its ids and times come as text.
        """
        loose = [field for field in cls.model_fields.values() if _is_loose_number(field.annotation, field.metadata)]
        if loose:
            for field in loose:
                field.metadata = [*field.metadata, Strict()]
            cls.model_rebuild(force=True)


class ResponseModel(BaseModel):
    """The parent of every answer's body: times are written in the town's zone, with its offset."""

    model_config = ConfigDict(
        frozen=True,
        from_attributes=True,
        ser_json_inf_nan="null",
        json_schema_serialization_defaults_required=True,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_options: Any) -> None:
        """Write plain `datetime` fields as `TownInstant`s: UTC in an answer is right, but nobody's clock shows it."""
        instants = [
            field
            for field in cls.model_fields.values()
            if _kinds(field.annotation) <= {datetime, types.NoneType}
            and not any(isinstance(mark, PlainSerializer) for mark in field.metadata)
        ]
        if instants:
            for field in instants:
                field.metadata = [*field.metadata, _IN_TOWN]
            cls.model_rebuild(force=True)


def _is_loose_number(annotation: object, metadata: list[Any]) -> bool:
    return _kinds(annotation) <= {int, float, bool, types.NoneType} and not any(
        isinstance(mark, Strict) for mark in metadata
    )


def _kinds(annotation: object) -> set[object]:
    """Return the types that a field takes: the members of a union, else the one."""
    return set(get_args(annotation)) if get_origin(annotation) in {Union, types.UnionType} else {annotation}
