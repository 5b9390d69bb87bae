"""`python -m loadtest.bench`: measures everything, prints one table, writes build/bench.json and build/bench.html."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console

from app.core.embedded import EngineFault
from loadtest.bench.growth import growth
from loadtest.bench.install import install
from loadtest.bench.machine import CannotBenchError, this_machine
from loadtest.bench.opening import PARENTS, opening, start_up
from loadtest.bench.page import print_table, write_page
from loadtest.bench.peers import Peer
from loadtest.bench.refusals import PARENTS as REFUSED_PARENTS
from loadtest.bench.refusals import PEERS as REFUSING_PEERS
from loadtest.bench.refusals import refusals
from loadtest.bench.results import Results, Row
from loadtest.bench.stage import Stage, stage
from loadtest.bench.tail import tail
from loadtest.bench.winners import PEERS as GIVING_PEERS
from loadtest.bench.winners import winners

REPORT: Final = Path("build/bench.json")
PAGE: Final = Path("build/bench.html")
_EXIT_MISSED: Final = 1
_EXIT_CANNOT: Final = 2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured, and how often. `seconds` is what one lap takes."""

    rounds: int
    seconds: float
    winner_seconds: float
    refused_parents: int
    sizes: tuple[int, ...]
    growth_rounds: int
    openings: int
    parents: int
    starts: int
    tail_rounds: int


# More rounds rather than longer ones: what else a machine does changes within seconds, and the median leaves it out.
WHOLE: Final = Effort(
    rounds=7,
    seconds=2,
    winner_seconds=2,
    refused_parents=REFUSED_PARENTS,
    sizes=(300, 10_000, 100_000, 1_000_000),
    growth_rounds=7,
    openings=3,
    parents=PARENTS,
    starts=3,
    tail_rounds=3,
)
QUICK: Final = Effort(
    rounds=2,
    seconds=1,
    winner_seconds=1,
    refused_parents=15_000,
    sizes=(300, 10_000),
    growth_rounds=2,
    openings=1,
    # Signing in is most of a rehearsal.
    parents=1_000,
    starts=1,
    tail_rounds=1,
)
PARTS: Final = ("refusals", "winners", "opening", "start", "growth", "tail")
_PEERS: Final[Mapping[str, tuple[Peer, ...]]] = {"refusals": REFUSING_PEERS, "winners": GIVING_PEERS}


async def bench(effort: Effort, parts: tuple[str, ...], results: Results, say: Say) -> None:
    """Measure, part by part, into `results`. Raises `CannotBenchError`, and `EngineFault` where no engine starts."""
    wrk = await install([peer for part in parts for peer in _PEERS.get(part, ())], say)
    if "start" in parts:
        results.rows += await start_up(rounds=effort.starts, say=say)
    if "opening" in parts:
        results.rows += await opening(rounds=effort.openings, parents=effort.parents, say=say)
    if "refusals" in parts:
        async with _new_stage(say) as at:
            results.rows += await refusals(
                at, wrk, rounds=effort.rounds, seconds=effort.seconds, parents=effort.refused_parents, say=say
            )
    if "winners" in parts:
        async with _new_stage(say) as at:
            results.rows += await winners(at, wrk, rounds=effort.rounds, seconds=effort.winner_seconds, say=say)
    if "growth" in parts:
        async with _new_stage(say) as at:
            rows, pictures = await growth(
                at, wrk, sizes=effort.sizes, rounds=effort.growth_rounds, seconds=effort.seconds, say=say
            )
            results.rows += rows
            results.pictures += pictures
    if "tail" in parts:
        async with _new_stage(say) as at:
            rows, pictures = await tail(at, wrk, rounds=effort.tail_rounds, seconds=effort.seconds, say=say)
            results.rows += rows
            results.pictures += pictures


@asynccontextmanager
async def _new_stage(say: Say) -> AsyncGenerator[Stage]:
    """Set a stage with engines and data of its own: what one part leaves behind must not weigh on the next."""
    data_dir = Path(tempfile.mkdtemp(prefix="clocktower-bench-"))
    try:
        async with stage(data_dir, say) as at:
            yield at
    finally:
        await asyncio.to_thread(shutil.rmtree, data_dir, ignore_errors=True)


def _parts_of(only: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in only.split(",")) if only else PARTS
    if unknown := set(parts) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    return parts


application = typer.Typer(add_completion=False)


@application.command()
def main(
    *,
    quick: Annotated[
        bool, typer.Option(help="Fewer and shorter rounds: three to four minutes, and less certain.")
    ] = False,
    only: Annotated[str, typer.Option(help=f"Only these parts, with commas between: {', '.join(PARTS)}.")] = "",
    json: Annotated[Path, typer.Option(help="Where the figures go.")] = REPORT,
    html: Annotated[Path, typer.Option(help="Where the page goes.")] = PAGE,
) -> None:
    """Measure the service beside its peers. Ends with 0 where every target is met, 1 where not, 2 on trouble."""
    parts = _parts_of(only)
    console = Console()
    began_at = time.monotonic()

    def say(sentence: str) -> None:
        console.print(
            f"[{time.monotonic() - began_at:6.0f} s] {sentence}", markup=False, highlight=False, soft_wrap=True
        )

    try:
        results = Results(this_machine(), datetime.now(UTC).isoformat(timespec="seconds"), quick=quick)
    except CannotBenchError as error:
        raise _cannot(console, error) from None
    trouble: Exception | None = None
    try:
        uvloop.run(bench(QUICK if quick else WHOLE, parts, results, say))
    except (CannotBenchError, EngineFault) as error:
        trouble = error
    # What was measured before a trouble is kept. In the order of the targets, whichever was measured first.
    results.rows.sort(key=_in_order)
    results.write_json(json)
    write_page(results, html)
    print_table(results.rows, console)
    say(f"Figures: {json}  Page: {html}")
    if trouble is not None:
        raise _cannot(console, trouble)
    if not results.all_met:
        raise typer.Exit(_EXIT_MISSED)


def _cannot(console: Console, error: Exception) -> typer.Exit:
    console.print(str(error), markup=False, highlight=False, style="bold red")
    return typer.Exit(_EXIT_CANNOT)


def _in_order(row: Row) -> tuple[str, int, str]:
    letters = row.id.rstrip("0123456789abcdefghijklmnopqrstuvwxyz")
    digits = "".join(filter(str.isdigit, row.id))
    # The targets first, P1 to P12.
    return ("" if letters == "P" else letters, int(digits or 0), row.id)


if __name__ == "__main__":
    application()
