"""Says in the summary of a run how much of the protocol was gone through."""

from collections.abc import Callable
from typing import Final

import pytest

from tests.model.exploration import Exploration

_EXPLORED: Final = "explored"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line for each exploration that held, whichever process of the run made it."""
    lines = [
        str(line)
        for report in terminalreporter.getreports("passed")
        for name, line in getattr(report, "user_properties", ())
        if name == _EXPLORED
    ]
    if lines:
        terminalreporter.section("the seat protocol as a model")
    for line in lines:
        terminalreporter.write_line(line)


@pytest.fixture
def tell(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Callable[[Exploration], None]:
    """Print what was found, and keep what held for the summary."""

    def told(found: Exploration) -> None:
        print(f"\n{found.state_count:,} states, {found.rest_count:,} at rest. {found.broken or 'Nothing broken.'}")  # noqa: T201 - for who runs it with -s or -rP, and in the report of a failure
        for number, step in enumerate(found.story, start=1):
            print(f"  {number}. {step}")  # noqa: T201 - the same
        if not found.broken:
            name = request.node.callspec.id
            record_property(_EXPLORED, f"{found.state_count:>9,} states, {found.rest_count:>7,} at rest: {name}")

    return told
