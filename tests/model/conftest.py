"""Says in the summary of a run how much of the protocol was gone through."""

from collections.abc import Callable
from typing import Final

import pytest

from tests.model.exploration import Exploration

_SECTION: Final = "the seat protocol as a model"


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
            record_property(_SECTION, f"{found.state_count:>9,} states, {found.rest_count:>7,} at rest: {name}")

    return told
