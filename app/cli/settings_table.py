"""Writes down every setting, from the one class that has them."""

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.table import Table

from app.cli import surroundings
from app.core.settings import ENVIRONMENT_PREFIX, Settings

_MADE_BY_EMBEDDED = {surroundings.DATABASE_URL, surroundings.REDIS_URL, *surroundings.SECRETS, *surroundings.WECHAT}

_LIMITS = {
    "ge": "≥ {}",
    "le": "≤ {}",
    "min_length": "at least {} characters",
    "max_length": "at most {} characters",
    "pattern": "{}",
}


def settings_table() -> Table:
    """Return a table of all settings: the variable, its default, its limits, what it is for."""
    table = Table(
        header_style="bold",
        title="settings",
        title_justify="left",
        caption=f"* Where neither {surroundings.DATABASE_URL} nor {surroundings.REDIS_URL} is given, the embedded mode "
        "makes these itself; with servers of your own, those without a default must be given.",
        caption_justify="left",
    )
    table.add_column("variable", no_wrap=True)
    table.add_column("default")
    table.add_column("limits")
    table.add_column("what it is")
    for name, field in Settings.model_fields.items():
        variable = ENVIRONMENT_PREFIX + name.upper()
        table.add_row(variable, default_of(variable, field), limits_of(field), field.description or "")
    return table


def default_of(variable: str, field: FieldInfo) -> str:
    """Return a setting's default as one would write it, with a star where the embedded mode makes its own."""
    made = variable in _MADE_BY_EMBEDDED
    if field.default is PydanticUndefined:
        return "(made if embedded) *" if made else "(must be given)"
    return (str(field.default) or "(empty)") + (" *" if made else "")


def limits_of(field: FieldInfo) -> str:
    """Return what is allowed, in short."""
    limits = [
        words.format(getattr(constraint, limit))
        for constraint in field.metadata
        for limit, words in _LIMITS.items()
        if getattr(constraint, limit, None) is not None
    ]
    return ", ".join(limits)
