"""A data directory of the test's own, emptied of processes whatever the test did."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.embedded.owners import working_in


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "data"
    yield directory
    # Only after a failed test is there anything to end.
    for process in working_in(directory):
        process.kill()
