"""Counts once for all tests of this package."""

from collections.abc import Generator, Mapping

import pytest

from tests.work.engines import CountingEngines, counting_engines
from tests.work.figures import Baseline, Figures
from tests.work.measuring import measure, write_table


@pytest.fixture(scope="package")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Generator[CountingEngines]:
    with counting_engines(tmp_path_factory.mktemp("work"), progress=lambda _sentence: None) as running:
        yield running


@pytest.fixture(scope="package")
def measured(counting: CountingEngines) -> Mapping[str, Figures]:
    figures = measure(counting)
    write_table(figures)
    return figures


@pytest.fixture(scope="package")
def baseline() -> Baseline:
    return Baseline.load()
