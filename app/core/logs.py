"""Writes logs for machines: one event a line to standard error, named, with its values apart.

Nothing personal may be logged. So an exception is written as its kinds and places only: its text may quote a row, a
token or a nickname.
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from typing import Final, cast

import structlog

from app.core.settings import Settings

# The deepest frames tell where; a recursion would fill the log.
FRAMES_MAX: Final = 25


def configure_logs(settings: Settings) -> None:
    """Send this process's own events and those of the libraries through one formatter, in JSON or for a console."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_exception_text,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # The edge writes one line a request, without addresses and query strings; uvicorn's would have both.
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    access = logging.getLogger("uvicorn.access")
    access.handlers = []
    access.propagate = False


def trace_of(error: BaseException) -> dict[str, object]:
    """Return an exception for the log: the kinds of it and of its causes, and where it was raised; never its text."""
    kinds = [f"{type(cause).__module__}.{type(cause).__qualname__}" for cause in _causes(error)]
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]
    return {"error": kinds, "where": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]}


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _without_exception_text(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Write an exception that comes with an event by its kinds and places, as our own failures are written."""
    given: object = event.pop("exc_info", None)
    if isinstance(given, tuple):
        _, error, _ = cast("tuple[object, object, object]", given)
    else:
        error = sys.exc_info()[1] if given is True else given
    if isinstance(error, BaseException):
        event.update(trace_of(error))
    return event
