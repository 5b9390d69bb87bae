"""Says what is wrong with a field: where it is, and a stable code.

Pydantic tells some hundred kinds of error apart and names them for programmers. Callers get about twenty codes that
will not change with the library.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast, get_args

from pydantic_core.core_schema import ErrorType

from app.core.problems import FieldError

# What a caller can mend at once; a body of 64 KiB could hold ten thousand wrong fields.
ERRORS_MAX: Final = 20
# A field's path may contain names that the caller made up.
FIELD_CHARACTERS_MAX: Final = 120

_CODES: Final[Mapping[str, str]] = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "int_from_float": "wrong_type",
    "none_required": "wrong_type",
    "string_unicode": "bad_text",
    "string_too_long": "too_long",
    "bytes_too_long": "too_long",
    "too_long": "too_long",
    "string_too_short": "too_short",
    "bytes_too_short": "too_short",
    "too_short": "too_short",
    "less_than": "too_large",
    "less_than_equal": "too_large",
    "int_parsing_size": "too_large",
    "greater_than": "too_small",
    "greater_than_equal": "too_small",
    "finite_number": "not_finite",
    "multiple_of": "bad_format",
    "string_pattern_mismatch": "bad_format",
    "uuid_version": "bad_format",
    "datetime_from_date_parsing": "bad_format",
    "date_from_datetime_parsing": "bad_format",
    "date_from_datetime_inexact": "bad_format",
    "datetime_object_invalid": "bad_format",
    "value_error": "not_allowed",
    "assertion_error": "not_allowed",
    "timezone_aware": "no_time_zone",
    "timezone_offset": "no_time_zone",
    "literal_error": "not_allowed",
    "enum": "not_allowed",
    "union_tag_invalid": "not_allowed",
    "union_tag_not_found": "missing",
    "date_past": "in_the_future",
    "datetime_past": "in_the_future",
    "date_future": "in_the_past",
    "datetime_future": "in_the_past",
}
_LIBRARYS_OWN: Final = frozenset(get_args(ErrorType))


# Where pydantic puts the limit that a value broke, by kind of error.
_LIMIT_NAMES: Final = ("max_length", "min_length", "le", "lt", "ge", "gt")
# The first part of a location names the place in the request; the rest is the path that the caller wrote.
_PLACES: Final = frozenset({"body", "query", "path", "header", "cookie"})


def field_errors(errors: Iterable[Mapping[str, Any]]) -> list[FieldError]:
    """Return pydantic's errors as the API tells them, at most 20. Values that were sent are not repeated."""
    return [
        FieldError(
            field=field_path(cast("Sequence[str | int]", error["loc"])),
            code=code_of(str(error["type"])),
            limit=_limit(cast("Mapping[str, object]", error.get("ctx") or {})),
        )
        for error in itertools.islice(errors, ERRORS_MAX)
    ]


def code_of(error_type: str) -> str:
    """Return our stable code for pydantic's name of an error; a validator's own name (`nul_character`) stays."""
    if error_type in _CODES:
        return _CODES[error_type]
    if error_type not in _LIBRARYS_OWN:
        return error_type
    if error_type.endswith("_type"):
        return "wrong_type"
    # What is left is `…_parsing`, `url_…` and the like: text that does not read as what it should be.
    return "bad_format"


def field_path(location: Sequence[str | int]) -> str:
    """Return `people[3].id` for `("body", "people", 3, "id")`, and `body` for the whole body."""
    parts = location[1:] if location and location[0] in _PLACES else location
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    printable = "".join(character if character.isprintable() else "\ufffd" for character in path)
    return printable[:FIELD_CHARACTERS_MAX] or str(location[0] if location else "body")


def _limit(context: Mapping[str, object]) -> object:
    return next((context[name] for name in _LIMIT_NAMES if name in context), None)
