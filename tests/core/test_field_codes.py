"""Every code that may stand in `errors` is in the table that callers read."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import pytest
from pydantic_core.core_schema import ErrorType

from app.core.field_codes import SENTENCES
from app.core.problems import FieldError
from app.core.web.errors_page import markdown_table
from app.core.web.validation import code_of

APP: Final = Path(__file__).parent.parent.parent / "app"
# What tells a field's code, and which of its arguments that is.
TELLERS: Final = {"FieldError": 1, "PydanticCustomError": 0, "_malformed": 0}


def _told_codes() -> Iterator[tuple[str, str]]:
    """Yield each code that the application tells, as (where, code); anything but a literal would escape the table."""
    for path in sorted(APP.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in TELLERS:
                continue
            where = f"{path.relative_to(APP)}:{call.lineno}"
            position = TELLERS[call.func.id]
            argument = call.args[position] if len(call.args) > position else None
            if isinstance(argument, ast.Constant):
                yield where, str(argument.value)
            else:
                # The two places where a code passes through, from a caller or from pydantic, that are looked at here.
                assert path.name in {"strict_json.py", "validation.py"}, f"{where}: not a literal"


def test_every_code_that_is_told_has_a_sentence() -> None:
    told = list(_told_codes())
    assert len(told) > 30
    assert [(where, code) for where, code in told if code not in SENTENCES] == []


def test_every_kind_of_error_that_pydantic_knows_has_a_sentence() -> None:
    assert {code_of(kind) for kind in get_args(ErrorType)} <= SENTENCES.keys()


def test_no_sentence_stands_for_a_code_that_nobody_tells() -> None:
    told = {code for _, code in _told_codes()} | {code_of(kind) for kind in get_args(ErrorType)}
    assert SENTENCES.keys() - told == set()


def test_the_page_lists_every_code() -> None:
    page = markdown_table([]).partition("## Codes of fields")[2]
    assert all(f"| `{code}` |" in page for code in SENTENCES)


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_told_in_one_language_at_a_time(code: str) -> None:
    english, chinese = (FieldError("field", code, 5).told(language)["message"] for language in ("en", "zh-CN"))
    assert english.isascii()
    assert not chinese.isascii()
    assert english not in chinese
    assert "{" not in english + chinese
