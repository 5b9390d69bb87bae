"""What a run of rounds came to: a table by fault, the last line, and everything as JSON."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from loadtest.report import write_atomically
from tests.chaos.faults import FAULTS
from tests.chaos.rounds import Outcome

FORM_VERSION: Final = 1


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


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the last line: the sum of everything."""
    return (
        f"{len(outcomes)} rounds, {sum(one.operations for one in outcomes):,} operations, "
        f"{sum(one.unknowns for one in outcomes):,} unknowns, {sum(map(violations_in, outcomes))} violations"
    )


def write_json(path: Path, seed: str, outcomes: Sequence[Outcome]) -> None:
    """Write everything, whole or not at all."""
    document = {
        "version": FORM_VERSION,
        "seed": seed,
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
