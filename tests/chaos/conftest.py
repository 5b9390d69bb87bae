"""One cluster to copy for every round of the tests."""

from typing import Final

import pytest

from tests.chaos.engines import Template

ROUND_SECONDS_MAX: Final = 120


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template.make(tmp_path_factory.mktemp("chaos"), lambda _sentence: None)
