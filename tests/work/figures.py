"""What is counted, and how it is compared with what held before."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

BASELINE_PATH: Final = Path(__file__).with_name("baseline.json")
ACCEPT: Final = ".venv/bin/python -m tests.work --accept"
ADVICE: Final = (
    "Find out where it comes from. What is meant, or is worth it, becomes the baseline with"
    f" `{ACCEPT}`; the commit says why."
)
# What a claim costs in Python is exact for one minor version: the next has other bytecode.
PYTHON_VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHON_FIGURES: Final = frozenset({"python_calls", "python_bytecodes"})
# Told, but held to nothing: how full the pages of the indexes are moves it by a few records.
INFORMATIVE_FIGURES: Final = frozenset({"postgres_wal_records"})

# One scenario's figures by name. All are totals of one tick.
Figures = Mapping[str, int]


class _Stored(TypedDict):
    tolerance_percent: int
    engines: dict[str, dict[str, int]]
    python: dict[str, dict[str, dict[str, int]]]


@dataclass(frozen=True, slots=True)
class Baseline:
    """The figures that hold, those of Python by its minor version, and by how much a figure may differ from them."""

    tolerance_percent: int
    engines: Mapping[str, Figures]
    python: Mapping[str, Mapping[str, Figures]]

    @classmethod
    def load(cls, path: Path = BASELINE_PATH) -> "Baseline":
        """Read it."""
        stored: _Stored = json.loads(path.read_text())
        return cls(stored["tolerance_percent"], stored["engines"], stored["python"])

    def accepting(self, measured: Mapping[str, Figures]) -> "Baseline":
        """Return a baseline with these figures; those of other versions of Python stay as they are."""
        return Baseline(
            self.tolerance_percent,
            {name: engine_figures(figures) for name, figures in measured.items()},
            {
                **self.python,
                PYTHON_VERSION: {name: python_figures(figures) for name, figures in measured.items()},
            },
        )

    def save(self, path: Path = BASELINE_PATH) -> None:
        """Write it, one figure a line and in order, so that a change of one figure is a change of one line."""
        stored = {"tolerance_percent": self.tolerance_percent, "engines": self.engines, "python": self.python}
        path.write_text(json.dumps(stored, indent=2) + "\n")

    @property
    def knows_this_python(self) -> bool:
        """Tell whether there are figures for the version of Python that runs now."""
        return PYTHON_VERSION in self.python

    def of_this_python(self, scenario: str) -> Figures | None:
        """Return what a scenario cost in this version of Python. None: it is new."""
        return self.python.get(PYTHON_VERSION, {}).get(scenario)


def engine_figures(figures: Figures) -> Figures:
    """Return those figures that are the same in every version of Python."""
    apart = PYTHON_FIGURES | INFORMATIVE_FIGURES
    return {name: figure for name, figure in figures.items() if name not in apart}


def python_figures(figures: Figures) -> Figures:
    """Return those figures that hold for one version of Python; empty for a scenario that has none."""
    return {name: figure for name, figure in figures.items() if name in PYTHON_FIGURES}


def complaints(scenario: str, before: Figures | None, now: Figures, *, tolerance_percent: int) -> Iterator[str]:
    """Say in a sentence of each figure of a scenario what is the matter with it; nothing where all is well.

    One that shrank by more than the tolerance is a complaint as well: unless the baseline follows it down, what was won
    can be lost again, bit by bit, without anybody noticing; and a scenario that suddenly does less may have stopped
    doing what it is there for. A figure that was nothing may not become anything.
    """
    if before is None:
        yield f"{scenario} is new: the baseline has no figures of it."
        return
    for name in sorted({*before, *now}):
        was, is_ = before.get(name), now.get(name)
        if was is None:
            yield f"{scenario}: {name} is new, at {is_}."
        elif is_ is None:
            yield f"{scenario}: {name} is not counted any more; it was {was}."
        elif is_ * 100 > was * (100 + tolerance_percent):
            yield f"{scenario}: {name} grew from {was} to {is_}{_by(was, is_)}; {tolerance_percent} % are allowed."
        elif is_ * 100 < was * (100 - tolerance_percent):
            yield f"{scenario}: {name} shrank from {was} to {is_}{_by(was, is_)}; the baseline has to follow."


def verdict(found: Iterable[str]) -> str:
    """Return complaints as one text that ends in what to do about them; empty where there are none."""
    lines = list(found)
    return "\n".join([*lines, ADVICE]) if lines else ""


def _by(was: int, is_: int) -> str:
    return f" (by {abs(is_ - was) * 100 / was:.1f} %)" if was else ""


def gone(baseline: Baseline, measured: Mapping[str, Figures]) -> Iterator[str]:
    """Say of each scenario that has a baseline, and is not played any more, that it has one."""
    for scenario in sorted(baseline.engines.keys() - measured.keys()):
        yield f"{scenario} is not played any more: the baseline has figures of it."


def all_complaints(baseline: Baseline, measured: Mapping[str, Figures]) -> Iterator[str]:
    """Say of all figures what is the matter with them, those of Python only where its version is known."""
    yield from gone(baseline, measured)
    for scenario, figures in measured.items():
        yield from complaints(
            scenario,
            baseline.engines.get(scenario),
            engine_figures(figures),
            tolerance_percent=baseline.tolerance_percent,
        )
        if baseline.knows_this_python:
            yield from complaints(
                scenario,
                baseline.of_this_python(scenario),
                python_figures(figures),
                tolerance_percent=baseline.tolerance_percent,
            )
