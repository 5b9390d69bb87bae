"""`python -m tests.work` prints what each scenario takes; with `--accept` it makes that the baseline."""

import argparse
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog
from rich.console import Console
from rich.table import Table

from app.core.settings import ENVIRONMENT_PREFIX
from tests.conftest import ROOT
from tests.work.engines import counting_engines
from tests.work.figures import BASELINE_PATH, Baseline, Figures, all_complaints, verdict
from tests.work.measuring import TABLE_PATH, measure, write_table
from tests.work.scenarios import SCENARIOS

# The tables, and of each the columns: a figure and its heading, of two lines.
_TABLES: Final = {
    "Redis": {
        "redis_commands": "commands\nsent",
        "redis_script_commands": "commands\nin scripts",
        "redis_sent_bytes": "bytes\nsent",
        "redis_received_bytes": "bytes\nreceived",
    },
    "PostgreSQL": {
        "postgres_round_trips": "round\ntrips",
        "postgres_transactions": "trans-\nactions",
        "postgres_statements": "statements\nsent",
        "postgres_inner_statements": "statements\ninside",
        "postgres_wal_records": "WAL\nrecords",
        "postgres_sent_bytes": "bytes\nsent",
        "postgres_received_bytes": "bytes\nreceived",
    },
    "Python, and what it answers": {
        "python_calls": "calls",
        "python_bytecodes": "bytecodes",
        "answer_bytes": "bytes\nanswered",
    },
}
_EACH: Final = {"python_calls": "calls\neach", "python_bytecodes": "bytecodes\neach"}
_WIDTH: Final = 150


def main() -> int:
    """Measure, print, and accept where that is asked. Returns 1 where the baseline does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.work", description=__doc__)
    parser.add_argument("--accept", action="store_true", help="write the figures to the baseline")
    arguments = parser.parse_args()
    # Neither somebody's settings nor an event's line may change what is counted.
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        del os.environ[name]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    console = Console(width=None if Console().is_terminal else _WIDTH)
    with (
        tempfile.TemporaryDirectory() as directory,
        counting_engines(Path(directory), progress=lambda _sentence: None) as engines,
    ):
        figures = measure(engines)
    write_table(figures)
    baseline = Baseline.load()
    for title, columns in _TABLES.items():
        console.print(_table(title, columns, figures, baseline))
    console.print(f"The same stands in {TABLE_PATH.relative_to(ROOT)}.")
    if arguments.accept:
        baseline.accepting(figures).save()
        console.print(f"Accepted: {BASELINE_PATH.relative_to(ROOT)} is written.")
        return 0
    found = verdict(all_complaints(baseline, figures))
    console.print(found or "All of it is as the baseline says.", style="red" if found else "green", markup=False)
    return 1 if found else 0


def _table(title: str, columns: Mapping[str, str], figures: Mapping[str, Figures], baseline: Baseline) -> Table:
    each = [name for name in columns if name in _EACH]
    table = Table(title=f"{title}: totals of a tick; in brackets what the baseline says, where that differs")
    table.add_column("scenario", no_wrap=True)
    for heading in ("claims", *columns.values(), *(_EACH[name] for name in each)):
        table.add_column(heading, justify="right", no_wrap=True)
    for scenario, counted in figures.items():
        claims = SCENARIOS[scenario].claims
        before = {**baseline.engines.get(scenario, {}), **(baseline.of_this_python(scenario) or {})}
        totals = [_cell(counted.get(name), before.get(name)) for name in columns]
        shares = [_cell(counted[name] // claims) if name in counted else "" for name in each]
        table.add_row(scenario, str(claims), *totals, *shares)
    return table


def _cell(now: int | None, before: int | None = None) -> str:
    if now is None:
        return ""
    return f"{now:,}" if before in {None, now} else f"{now:,} ({before:,})"


if __name__ == "__main__":
    raise SystemExit(main())
