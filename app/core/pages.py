"""Lists in pages: `?cursor=&limit=` in, `{"items", "next"}` out. A cursor says where the next page begins.

Pages are cut by key, not by number: a row that comes or goes between two pages neither repeats another nor hides it.
"""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Final, TypeVar, cast

from fastapi import Query

from app.core.problems import FieldError, ValidationFailed

ItemT = TypeVar("ItemT")

PAGE_LIMIT: Final = 100
CURSOR_CHARACTERS_MAX: Final = 512

# Where the page that is asked for begins; the first one without it.
Cursor = Annotated[
    str | None, Query(max_length=CURSOR_CHARACTERS_MAX, description="`next` of the page before.", examples=[None])
]
# How many items the page may have.
Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT, description="The most items on one page.")]


def page_of(
    rows: Sequence[ItemT], *, limit: int, cursor_of: Callable[[ItemT], str]
) -> tuple[Sequence[ItemT], str | None]:
    """Return the items of a page and the cursor of the next one, None at the end.

    `rows` are up to `limit + 1` rows: that there is one more is how the next page is known.
    """
    if len(rows) <= limit:
        return rows, None
    shown = rows[:limit]
    return shown, cursor_of(shown[-1])


def write_cursor(*key: str) -> str:
    """Return the cursor that stands for the key of a page's last row."""
    return base64.urlsafe_b64encode(json.dumps(key, ensure_ascii=False).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, *, parts: int) -> tuple[str, ...] | None:
    """Return the key in a cursor, None without one; raise `ValidationFailed` for one that no list gave out."""
    if cursor is None:
        return None
    try:
        key: object = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise bad_cursor() from None
    if not isinstance(key, list) or len(cast("list[object]", key)) != parts:
        raise bad_cursor()
    found = cast("list[object]", key)
    if not all(isinstance(part, str) and part.isprintable() for part in found):
        raise bad_cursor()
    return tuple(cast("list[str]", found))


def bad_cursor() -> ValidationFailed:
    """Return the refusal of a cursor; also for a key that reads well and cannot be one."""
    return ValidationFailed(
        "The cursor is not one that a list gave out.",
        "翻页游标无效。",
        errors=[FieldError("cursor", "bad_cursor")],
    )
