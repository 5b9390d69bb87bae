"""Reads a claim's body: quickly where it is sound, and as strictly as every other body of the API."""

import json
from collections.abc import Callable
from typing import Final, cast
from uuid import UUID

import msgspec

from app.booking.gate.wire import ClaimBody
from app.core.problems import FieldError, ValidationFailed
from app.core.web.strict_json import check_json
from app.core.web.validation import ERRORS_MAX, field_path

_decode: Final = msgspec.json.Decoder(ClaimBody).decode


def read_claim(body: bytes) -> ClaimBody:
    """Return the claim. Raises `MalformedJson` or `ValidationFailed`, as the API would for the same fault."""
    try:
        claim = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _refusal(body) from None
    if may_name_twice(body):
        check_json(body)
    return claim


def may_name_twice(body: bytes) -> bool:
    """Tell whether a name may come twice in a claim that the decoder took: it takes such a one.

    No value of a claim holds a colon, so there is one for each name; where they are more than the names that are
    there, one comes twice, or is written with an escape, and whoever asks has to look closely.
    """
    names = body.count(b":")
    return names != 3 and names != 3 + (b'"together"' in body) + (b'"waitlist"' in body)  # noqa: PLR2004 - those that must be there


def _refusal(body: bytes) -> ValidationFailed:
    """Say what is wrong with a body that is no claim. Off the hot path, so it may look at everything.

    Raises `MalformedJson`: the decoder gives up at the first wrong type, before it has seen all of the body.
    """
    if not body:
        return ValidationFailed(errors=[FieldError("body", "missing")])
    check_json(body)
    errors = _faults(json.loads(body.decode()))[:ERRORS_MAX]
    return ValidationFailed(errors=errors or [FieldError("body", "bad_format")])


def _faults(parsed: object) -> list[FieldError]:
    if not isinstance(parsed, dict):
        return [FieldError("body", "wrong_type")]
    fields = cast("dict[str, object]", parsed)
    errors: list[FieldError] = []
    for name, check in _CHECKS.items():
        if name in fields:
            errors.extend(check(name, fields[name]))
        elif name in _REQUIRED:
            errors.append(FieldError(name, "missing"))
    errors += [FieldError(field_path((name,)), "unknown_field") for name in fields if name not in _CHECKS]
    return errors


def _check_id(field: str, value: object) -> list[FieldError]:
    if not isinstance(value, str):
        return [FieldError(field, "wrong_type")]
    try:
        msgspec.convert(value, UUID)
    except msgspec.ValidationError:
        return [FieldError(field, "bad_format")]
    return []


def _check_ids(field: str, value: object) -> list[FieldError]:
    if not isinstance(value, list):
        return [FieldError(field, "wrong_type")]
    items = cast("list[object]", value)
    return [error for index, item in enumerate(items) for error in _check_id(f"{field}[{index}]", item)]


def _check_flag(field: str, value: object) -> list[FieldError]:
    return [] if isinstance(value, bool) else [FieldError(field, "wrong_type")]


_CHECKS: Final[dict[str, Callable[[str, object], list[FieldError]]]] = {
    "release": _check_id,
    "people": _check_ids,
    "choices": _check_ids,
    "together": _check_flag,
    "waitlist": _check_flag,
}
_REQUIRED: Final = ("release", "people", "choices")
