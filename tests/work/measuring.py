"""Plays every scenario and writes down what it took."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import uvloop

from tests.conftest import ROOT
from tests.work.engines import CountingEngines
from tests.work.figures import PYTHON_VERSION, Figures
from tests.work.scenarios import SCENARIOS
from tests.work.stage import Stage, staged

TABLE_PATH: Final = ROOT / "build" / "work.json"


def measure(engines: CountingEngines) -> dict[str, Figures]:
    """Return the figures of every scenario. Takes some six seconds; there may be no loop yet."""

    async def on_stage() -> dict[str, Figures]:
        async with staged(engines) as stage:
            return await _measure_all(stage)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(on_stage())


async def _measure_all(stage: Stage) -> dict[str, Figures]:
    """Play every scenario twice and count the second time: what a worker learns once is not a claim's work."""
    figures: dict[str, Figures] = {}
    for name, scenario in SCENARIOS.items():
        for _ in range(2):
            figures[name] = await scenario.play(stage, scenario.claims)
            stage.hang_up()
    return figures


def write_table(figures: Mapping[str, Figures], path: Path = TABLE_PATH) -> None:
    """Write all figures, with the number of claims, or questions, of each scenario."""
    path.parent.mkdir(exist_ok=True)
    scenarios = {name: {"claims": SCENARIOS[name].claims, **counted} for name, counted in figures.items()}
    path.write_text(json.dumps({"python": PYTHON_VERSION, "scenarios": scenarios}, indent=2) + "\n")
