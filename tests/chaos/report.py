"""What a run of rounds came to: a table by fault, the last line, and everything as JSON."""

import json
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from loadtest.report import write_atomically
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.rounds import Outcome

FORM_VERSION: Final = 1


@dataclass(slots=True)
class Run:
    """What was to be played, and what came of it so far; `trouble` is why it broke off.

    `is_of_some` tells that the faults were chosen by name. `only_round` and `places` are 0 where nobody asked for one
    round, or for a city.
    """

    seed: str
    faults: Sequence[Fault]
    rounds: int
    is_of_some: bool = False
    only_round: int = 0
    places: int = 0
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    trouble: str = ""

    @property
    def is_whole(self) -> bool:
        """Tell whether it was a run of all faults and all rounds, and came to its end."""
        return not (self.is_of_some or self.only_round or self.trouble)


def again(run: Run) -> str:
    """Return the command that plays the same run, for a shell."""
    options: list[str] = []
    if run.is_of_some:
        options += ["--only", ",".join(fault.name for fault in run.faults)]
    if run.only_round:
        options += ["--only-round", str(run.only_round)]
    if run.places:
        options += ["--places", str(run.places)]
    words = ["make", "chaos", f"SEED={_for_make(run.seed)}", f"ROUNDS={run.rounds}"]
    return " ".join(words + ([f"ARGS={shlex.quote(shlex.join(options))}"] if options else []))


def _for_make(word: str) -> str:
    """Quote a word twice: make puts a variable as it is into the line that it hands to a shell of its own."""
    return shlex.quote(shlex.quote(word).replace("$", "$$"))


@dataclass(frozen=True, slots=True)
class Line:
    """One fault over all its rounds. Spans are the longest, in seconds."""

    fault: str
    what: str
    rounds: int
    struck: int
    operations: int
    unknowns: int
    unavailable_during_s: float
    unavailable_after_s: float | None
    violations: int


def lines_of(outcomes: Sequence[Outcome]) -> list[Line]:
    """Return a line for each fault that was played, in the order of the catalogue."""
    by_fault: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_fault[outcome.fault].append(outcome)
    lines: list[Line] = []
    for name in (name for name in FAULTS if name in by_fault):
        theirs = by_fault[name]
        after = [one.recovery.unavailable_after_s for one in theirs]
        lines.append(
            Line(
                name,
                FAULTS[name].what,
                rounds=len(theirs),
                struck=sum(not one.missed for one in theirs),
                operations=sum(one.operations for one in theirs),
                unknowns=sum(one.unknowns for one in theirs),
                unavailable_during_s=max(one.recovery.unavailable_during_s for one in theirs),
                unavailable_after_s=None if None in after else max(seconds for seconds in after if seconds is not None),
                violations=sum(violations_in(one) for one in theirs),
            )
        )
    return lines


def told(outcome: Outcome) -> str:
    """Return a line on one round."""
    recovery = outcome.recovery
    after = "for good" if recovery.unavailable_after_s is None else f"{recovery.unavailable_after_s:.2f} s"
    struck = ", not struck" if outcome.missed else ""
    broken = "" if outcome.is_well else ": BROKEN"
    return (
        f"{outcome.fault}: {outcome.operations} operations, {outcome.unknowns} unknown, {outcome.promised} promised, "
        f"away {recovery.unavailable_during_s:.2f} s and {after} after{struck}{broken}"
    )


def violations_in(outcome: Outcome) -> int:
    """Count what broke in a round; a round that could not be played to its end counts as one more."""
    return sum(map(len, outcome.broken.values())) + bool(outcome.trouble)


def print_table(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print the table, and what broke, with the stories that show it."""
    table = Table(title="Chaos", title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("fault")
    for name in ("rounds", "struck", "operations", "unknowns", "away during", "away after", "violations"):
        table.add_column(name, justify="right")
    for line in lines_of(outcomes):
        after = "for good" if line.unavailable_after_s is None else f"{line.unavailable_after_s:.2f} s"
        table.add_row(
            line.fault,
            str(line.rounds),
            str(line.struck),
            f"{line.operations:,}",
            f"{line.unknowns:,}",
            f"{line.unavailable_during_s:.2f} s",
            after,
            str(line.violations),
        )
    console.print(table)
    for outcome in outcomes:
        if not outcome.is_well:
            print_trouble(outcome, console)


def print_storms(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print what each storm did to the service: the worst of its rounds."""
    storms = [(outcome.fault, outcome.strain) for outcome in outcomes if outcome.strain is not None]
    if not storms:
        return
    kinds = list(storms[0][1].memory_mib)
    table = Table(title="Storms: memory in MiB, before and at most", title_justify="left", box=None, pad_edge=False)
    for name in ("storm", "sent", "answers", "slowest check", "back after", *kinds):
        table.add_column(name, justify="left" if name == "storm" else "right")
    for name in dict(storms):
        theirs = [strain for fault, strain in storms if fault == name]
        memory = [
            f"{max(one.memory_before_mib.get(kind, 0.0) for one in theirs):.0f} → "
            f"{max(one.memory_mib.get(kind, 0.0) for one in theirs):.0f}"
            for kind in kinds
        ]
        table.add_row(
            name,
            f"{sum(one.sent for one in theirs):,}",
            f"{sum(sum(one.answers.values()) for one in theirs):,}",
            f"{max(one.slowest_check_s for one in theirs):.2f} s",
            f"{max(one.back_s for one in theirs):.2f} s",
            *memory,
        )
    console.print(table)


def print_trouble(outcome: Outcome, console: Console) -> None:
    """Print what broke in one round."""
    console.print(f"Round {outcome.number} ({outcome.fault}):", style="bold red", highlight=False)
    if outcome.trouble:
        console.print(f"  {outcome.trouble}", markup=False, highlight=False)
    for name, sentences in outcome.broken.items():
        console.print(f"  {name}: {len(sentences)} times, first: {sentences[0]}", markup=False, highlight=False)
    for claim_id, lines in outcome.stories.items():
        console.print(f"  claim {claim_id}", highlight=False)
        for line in lines:
            console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)


def summary(run: Run) -> str:
    """Return the last line: the sum of everything."""
    outcomes = run.outcomes
    broken_off = ", broken off" if run.trouble else ""
    return (
        f"Seed {run.seed}{broken_off}: {len(outcomes)} rounds, {sum(one.operations for one in outcomes):,} operations, "
        f"{sum(one.unknowns for one in outcomes):,} unknowns, {sum(map(violations_in, outcomes))} violations"
    )


def write_json(path: Path, run: Run) -> None:
    """Write everything, whole or not at all."""
    outcomes = run.outcomes
    document = {
        "version": FORM_VERSION,
        "seed": run.seed,
        "trouble": run.trouble or None,
        "rounds": [outcome.as_document() for outcome in outcomes],
        "faults": [
            {
                "fault": line.fault,
                "what": line.what,
                "rounds": line.rounds,
                "struck": line.struck,
                "operations": line.operations,
                "unknowns": line.unknowns,
                "unavailable_during_s": round(line.unavailable_during_s, 3),
                "unavailable_after_s": line.unavailable_after_s and round(line.unavailable_after_s, 3),
                "violations": line.violations,
            }
            for line in lines_of(outcomes)
        ],
        "operations": sum(one.operations for one in outcomes),
        "unknowns": sum(one.unknowns for one in outcomes),
        "violations": sum(map(violations_in, outcomes)),
    }
    write_atomically(path, json.dumps(document, ensure_ascii=False, indent=2) + "\n")
