"""Says in the summary of a run how much of the protocol was gone through."""

from collections.abc import Callable

import pytest

from tests.model.exploration import Exploration

EXPLORED = pytest.StashKey[list[tuple[str, Exploration]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[EXPLORED] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    explored = config.stash[EXPLORED]
    if explored:
        terminalreporter.section("the seat protocol as a model")
    for name, found in explored:
        terminalreporter.write_line(f"{found.state_count:>9,} states, {found.rest_count:>7,} at rest: {name}")


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[Exploration], None]:
    """Print what was found, and keep what held for the summary."""

    def told(found: Exploration) -> None:
        print(f"\n{found.state_count:,} states, {found.rest_count:,} at rest. {found.broken or 'Nothing broken.'}")  # noqa: T201 - for who runs it with -s or -rP, and in the report of a failure
        for number, step in enumerate(found.story, start=1):
            print(f"  {number}. {step}")  # noqa: T201 - the same
        if not found.broken:
            request.config.stash[EXPLORED].append((request.node.callspec.id, found))

    return told
