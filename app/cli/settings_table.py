"""Writes down every setting, from the one class that has them."""

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.table import Table

from app.core.settings import ENVIRONMENT_PREFIX, Settings

_LIMITS = {
    "ge": "≥ {}",
    "le": "≤ {}",
    "min_length": "at least {} characters",
    "max_length": "at most {} characters",
    "pattern": "{}",
}


def settings_table() -> Table:
    """Return a table of all settings: the variable, its default, its limits, what it is for."""
    table = Table(header_style="bold", title="settings", title_justify="left")
    table.add_column("variable", no_wrap=True)
    table.add_column("default")
    table.add_column("limits")
    table.add_column("what it is")
    for name, field in Settings.model_fields.items():
        table.add_row(ENVIRONMENT_PREFIX + name.upper(), default_of(field), limits_of(field), field.description or "")
    return table


def default_of(field: FieldInfo) -> str:
    """Return a setting's default as one would write it; what has none must be given."""
    if field.default is PydanticUndefined:
        return "(must be given)"
    return str(field.default) or "(empty)"


def limits_of(field: FieldInfo) -> str:
    """Return what is allowed, in short."""
    limits = [
        words.format(getattr(constraint, limit))
        for constraint in field.metadata
        for limit, words in _LIMITS.items()
        if getattr(constraint, limit, None) is not None
    ]
    return ", ".join(limits)
