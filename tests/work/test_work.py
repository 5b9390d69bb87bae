"""The work of each scenario is what the baseline says, give or take a tenth."""

from collections.abc import Mapping

import pytest

from tests.work.figures import (
    PYTHON_VERSION,
    Baseline,
    Figures,
    complaints,
    engine_figures,
    gone,
    python_figures,
    verdict,
)
from tests.work.scenarios import SCENARIOS

_NEVER_ASKS_POSTGRESQL = [name for name in SCENARIOS if name.startswith(("refusal", "repeated", "question", "poll"))]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_engines_have_no_more_work_than_before(
    scenario: str, measured: Mapping[str, Figures], baseline: Baseline
) -> None:
    found = verdict(
        complaints(
            scenario,
            baseline.engines.get(scenario),
            engine_figures(measured[scenario]),
            tolerance_percent=baseline.tolerance_percent,
        )
    )
    if found:
        pytest.fail(found, pytrace=False)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_python_has_no_more_work_than_before(
    scenario: str, measured: Mapping[str, Figures], baseline: Baseline
) -> None:
    if not baseline.knows_this_python:
        versions = ", ".join(baseline.python)
        pytest.skip(f"calls and bytecodes are known for Python {versions}, and {PYTHON_VERSION} has others")
    found = verdict(
        complaints(
            scenario,
            baseline.of_this_python(scenario),
            python_figures(measured[scenario]),
            tolerance_percent=baseline.tolerance_percent,
        )
    )
    if found:
        pytest.fail(found, pytrace=False)


def test_every_scenario_of_the_baseline_is_still_played(measured: Mapping[str, Figures], baseline: Baseline) -> None:
    found = verdict(gone(baseline, measured))
    if found:
        pytest.fail(found, pytrace=False)


@pytest.mark.parametrize("scenario", _NEVER_ASKS_POSTGRESQL)
def test_nothing_on_the_way_to_a_no_asks_postgresql(scenario: str, measured: Mapping[str, Figures]) -> None:
    assert {name: figure for name, figure in measured[scenario].items() if "postgres" in name and figure} == {}


@pytest.mark.parametrize("scenario", ["refusals_20", "winners_20", "winners_40", "siblings_10", "waiters_20"])
def test_the_claims_of_one_tick_share_their_script_call_and_their_commit(
    scenario: str, measured: Mapping[str, Figures]
) -> None:
    alone = {"refusals_20": "refusal", "siblings_10": "siblings", "waiters_20": "waiter"}.get(scenario, "winner")
    for name in ("redis_commands", "postgres_round_trips", "postgres_transactions", "postgres_statements"):
        assert measured[scenario][name] == measured[alone][name]
