import json
import logging
from collections.abc import Generator

import pytest
import structlog

from app.core.logs import configure_logs
from app.core.settings import Settings


@pytest.fixture(autouse=True)
def _logging_as_before() -> Generator[None]:  # pyright: ignore[reportUnusedFunction] - used by pytest
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    before = structlog.get_config()
    # Which the watch over the logs of the whole run has lowered, or another test has changed.
    levels = {logger: logger.level for logger in map(logging.getLogger, ("app", "asyncio", "uvicorn", "uvicorn.error"))}
    for logger in levels:
        logger.setLevel(logging.NOTSET)
    yield
    for logger, level_before in levels.items():
        logger.setLevel(level_before)
    root.handlers, root.level = handlers, level
    structlog.configure(**before)


def test_events_are_one_json_object_a_line(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(settings)
    structlog.stdlib.get_logger("app.test").info("claim_refused", reason="full")
    logging.getLogger("uvicorn.error").info("Started")
    logging.getLogger("uvicorn.access").info("GET /v1/me?token=sesame")
    structlog.stdlib.get_logger("app.test").debug("too_small_to_tell")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["claim_refused", "Started"]
    assert lines[0]["reason"] == "full"
    assert lines[0]["level"] == "info"
    assert lines[0]["timestamp"].endswith("Z")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_logged_exception_keeps_its_text_to_itself(
    settings: Settings, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logs(settings.model_copy(update={"log_format": log_format}))
    try:
        _fail()
    except ValueError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")
        structlog.stdlib.get_logger("app.test").exception("request_failed")
    written = capsys.readouterr().err
    assert "builtins.ValueError" in written
    assert "builtins.KeyError" in written
    assert "test_logs.py" in written
    assert "儿童" not in written
    assert "居民" not in written


def _fail() -> None:
    try:
        {}["儿童丙0021"]
    except KeyError as cause:
        raise ValueError("居民甲0137") from cause
