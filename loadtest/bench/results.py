"""Rows: what was measured, beside what, how far it spread, and whether it is what was aimed at."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from loadtest.bench.machine import Machine
from loadtest.bench.stage import Spent
from loadtest.report import write_atomically

FORM_VERSION: Final = 2
# What a bench can measure, in the order in which it does.
PARTS: Final = ("start", "opening", "refusals", "winners", "growth", "tail")
# Those with the targets P1 to P12, which are all that a quick run measures.
QUICK_PARTS: Final = ("start", "opening", "refusals", "winners", "growth")


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the ends of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of these values, of which there is at least one."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Target:
    """What is aimed at: a bound, from above or from below, on the ratio or on the value itself."""

    bound: float
    at_least: bool
    of_ratio: bool

    def is_met_by(self, value: float) -> bool:
        """Tell whether a figure is on the right side of the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


def ratio_at_least(bound: float) -> Target:
    """Aim at a ratio of this or more."""
    return Target(bound, at_least=True, of_ratio=True)


def ratio_at_most(bound: float) -> Target:
    """Aim at a ratio of this or less."""
    return Target(bound, at_least=False, of_ratio=True)


def value_at_most(bound: float) -> Target:
    """Aim at a value of this or less."""
    return Target(bound, at_least=False, of_ratio=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `value` and `reference` are medians, in `unit`. `ratio` is that of pairs measured one after the other, value ÷
    reference; without a reference there is none, and the ends are those of the value. `cpu_us` is the processor time
    that one claim took, on our side and on the other.
    """

    id: str
    what: str
    unit: str
    value: Spread
    target: Target | None
    reference: Spread | None = None
    reference_what: str = ""
    ratio: Spread | None = None
    cpu_us: Spent | None = None
    reference_cpu_us: Spent | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Tell whether the median is what was aimed at; None where nothing is."""
        if self.target is None:
            return None
        figure = self.ratio if self.target.of_ratio else self.value
        assert figure is not None  # noqa: S101 - a target of a ratio stands in a row that has one
        return self.target.is_met_by(figure.median)

    @property
    def aim(self) -> str:
        """Return the target with what it counts: times the reference, or the row's unit."""
        if self.target is None:
            return ""
        return f"{self.target}×" if self.target.of_ratio else f"{self.target} {self.unit}"

    def as_document(self) -> dict[str, object]:
        """Return the row for the JSON report."""
        ends = self.ratio or self.value
        return {
            "id": self.id,
            "what": self.what,
            "unit": self.unit,
            "value": self.value.median,
            "reference": None if self.reference is None else self.reference.median,
            "reference_what": self.reference_what,
            "ratio": None if self.ratio is None else self.ratio.median,
            "min": ends.low,
            "max": ends.high,
            "target": self.aim or None,
            "met": self.met,
            "cpu_us": None if self.cpu_us is None else self.cpu_us.as_document(),
            "reference_cpu_us": None if self.reference_cpu_us is None else self.reference_cpu_us.as_document(),
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart: a name, and points by x."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart for the page and for the JSON report. With `log_x`, x is drawn as its logarithm to the base of ten."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    remark: str = ""

    def as_document(self) -> dict[str, object]:
        """Return the picture's figures."""
        return {
            "title": self.title,
            "x": self.x_label,
            "y": self.y_label,
            "curves": {curve.name: curve.points for curve in self.curves},
            "remark": self.remark,
        }


@dataclass(slots=True)
class Results:
    """What a bench was to find out, how far it came, and what it found.

    `parts` are those of `PARTS` that were asked for, `trouble` is why it broke off.
    """

    machine: Machine
    started_at: str
    quick: bool
    parts: Sequence[str] = PARTS
    finished: list[str] = field(default_factory=list[str])
    trouble: str = ""
    rows: list[Row] = field(default_factory=list[Row])
    pictures: list[Picture] = field(default_factory=list[Picture])

    def add(self, part: str, rows: Sequence[Row], pictures: Sequence[Picture] = ()) -> None:
        """Take what a part found out, to its end."""
        self.rows += rows
        self.pictures += pictures
        self.finished.append(part)

    @property
    def is_whole(self) -> bool:
        """Tell whether everything was measured, for a quick run everything that has a target in P1 to P12."""
        return not self.trouble and set(self.finished) >= set(QUICK_PARTS if self.quick else PARTS)

    @property
    def missed(self) -> Sequence[Row]:
        """Return the rows that missed their target."""
        return [row for row in self.rows if row.met is False]

    @property
    def all_met(self) -> bool:
        """Tell whether everything was measured, and no row missed its target."""
        return self.is_whole and not self.missed

    @property
    def verdict(self) -> str:
        """Return in one sentence what came of the targets: of those that were measured, where not all of them were."""
        aimed_at = [row for row in self.rows if row.target is not None]
        which = "target of a quick run" if self.quick else "target"
        if not self.is_whole:
            which += " that was measured"
        if not aimed_at:
            found = "no target was measured"
        elif self.missed:
            found = f"not every {which} is met ({', '.join(row.id for row in self.missed)})"
        else:
            found = f"every {which} is met"
        return f"The bench broke off: {found}" if self.trouble else found[0].upper() + found[1:]

    def as_document(self) -> Mapping[str, object]:
        """Return the JSON report."""
        return {
            "version": FORM_VERSION,
            "started_at": self.started_at,
            "quick": self.quick,
            "parts": list(self.parts),
            "finished": self.finished,
            "trouble": self.trouble or None,
            "machine": self.machine.as_document(),
            "all_met": self.all_met,
            "rows": [row.as_document() for row in self.rows],
            "pictures": [picture.as_document() for picture in self.pictures],
        }

    def write_json(self, path: Path) -> None:
        """Write the report, whole or not at all."""
        write_atomically(path, json.dumps(self.as_document(), ensure_ascii=False, indent=2) + "\n")
