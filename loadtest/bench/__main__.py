"""`python -m loadtest.bench`: measures everything, prints one table, writes build/bench.json and build/bench.html."""

import asyncio
import re
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console

from app.cli.refusal import Refusal
from app.cli.rehearse import Reports
from app.core.embedded import EngineFault
from loadtest.bench.growth import growth
from loadtest.bench.install import install
from loadtest.bench.machine import CannotBenchError, this_machine
from loadtest.bench.opening import opening, start_up
from loadtest.bench.page import print_table, write_page
from loadtest.bench.peers import Peer
from loadtest.bench.refusals import PARENTS as REFUSED_PARENTS
from loadtest.bench.refusals import PEERS as REFUSING_PEERS
from loadtest.bench.refusals import refusals
from loadtest.bench.results import PARTS, QUICK_PARTS, Picture, Results, Row
from loadtest.bench.stage import Stage, stage
from loadtest.bench.tail import opening_second, tail
from loadtest.bench.winners import PEERS as GIVING_PEERS
from loadtest.bench.winners import winners

# What is not whole goes beside the last run that was.
_WHOLE: Final = Path("build/bench")
_IN_PART: Final = Path("build/bench-part")
_EXIT_MISSED: Final = 1
_EXIT_CANNOT: Final = 2
_EXIT_INTERRUPTED: Final = 130

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured, and how often. `seconds` is what one lap takes.

    With `targets_only` nothing is measured that has no target in P1 to P12, and of the opening its second only: signing
    in is most of a rehearsal. `stages` says which parts share their engines and our server.
    """

    rounds: int
    seconds: float
    winner_seconds: float
    refused_parents: int
    sizes: tuple[int, ...]
    growth_rounds: int
    openings: int
    starts: int
    tail_rounds: int
    targets_only: bool
    stages: tuple[tuple[str, ...], ...]


# More rounds rather than longer ones: what else a machine does changes within seconds, and the median leaves it out.
WHOLE: Final = Effort(
    rounds=7,
    seconds=2,
    winner_seconds=2,
    refused_parents=REFUSED_PARENTS,
    sizes=(300, 10_000, 100_000, 1_000_000),
    growth_rounds=11,
    openings=3,
    starts=3,
    tail_rounds=3,
    targets_only=False,
    stages=(("refusals",), ("winners",), ("growth",), ("tail",)),
)
QUICK: Final = Effort(
    rounds=2,
    seconds=1,
    winner_seconds=1,
    refused_parents=15_000,
    sizes=(300, 10_000),
    growth_rounds=2,
    openings=2,
    starts=1,
    tail_rounds=1,
    targets_only=True,
    # Winners cost PostgreSQL more where others have claimed before; growth looks at what it holds.
    stages=(("opening", "refusals"), ("winners",), ("growth",), ("tail",)),
)
_PEERS: Final[Mapping[str, tuple[Peer, ...]]] = {"refusals": REFUSING_PEERS, "winners": GIVING_PEERS}
# Everybody else is asked by wrk.
_WITHOUT_WRK: Final = frozenset({"start", "opening"})


async def bench(effort: Effort, results: Results, say: Say) -> None:
    """Measure, part by part, into `results`. Raises `CannotBenchError`, and `EngineFault` where no engine starts."""
    wrk = ""
    if not _WITHOUT_WRK.issuperset(results.parts):
        wrk = await install([peer for part in results.parts for peer in _PEERS.get(part, ())], say)
    if "start" in results.parts:
        results.add("start", await start_up(rounds=effort.starts, say=say))
    if "opening" in results.parts and not effort.targets_only:
        results.add("opening", await opening(rounds=effort.openings, say=say))
    for shared_by in effort.stages:
        if parts := [part for part in shared_by if part in results.parts]:
            async with _new_stage(say) as at:
                for part in parts:
                    results.add(part, *await _measure(part, effort, at, wrk, say))


async def _measure(part: str, effort: Effort, at: Stage, wrk: str, say: Say) -> tuple[list[Row], list[Picture]]:
    match part:
        case "opening":
            return await opening_second(at, rounds=effort.openings, say=say), []
        case "refusals":
            rows = await refusals(
                *(at, wrk),
                rounds=effort.rounds,
                seconds=effort.seconds,
                parents=effort.refused_parents,
                with_crowd=not effort.targets_only,
                say=say,
            )
            return rows, []
        case "winners":
            rows = await winners(
                *(at, wrk),
                rounds=effort.rounds,
                seconds=effort.winner_seconds,
                with_skip_locked=not effort.targets_only,
                say=say,
            )
            return rows, []
        case "growth":
            return await growth(
                *(at, wrk),
                sizes=effort.sizes,
                rounds=effort.growth_rounds,
                seconds=effort.seconds,
                with_reads=not effort.targets_only,
                say=say,
            )
        case _:
            return await tail(at, wrk, rounds=effort.tail_rounds, seconds=effort.seconds, say=say)


@asynccontextmanager
async def _new_stage(say: Say) -> AsyncGenerator[Stage]:
    """Set a stage with engines and data of its own: what was measured before must not weigh on what comes."""
    data_dir = Path(tempfile.mkdtemp(prefix="clocktower-bench-"))
    try:
        async with stage(data_dir, say) as at:
            yield at
    finally:
        await asyncio.to_thread(shutil.rmtree, data_dir, ignore_errors=True)


def _parts_of(only: str, *, quick: bool) -> tuple[str, ...]:
    everything = QUICK_PARTS if quick else PARTS
    parts = {part.strip() for part in only.split(",")} - {""} if only else set(everything)
    unknown = sorted(parts - set(PARTS))
    if unknown or not parts:
        raise typer.BadParameter(f"{', '.join(unknown) or 'no part'}: choose from {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in parts)


def _where(what: str, ending: str) -> str:
    return f"Where the {what} go, if not {_WHOLE}.{ending}; of a run that is not whole, {_IN_PART}.{ending}."


def _require_writable(json: Path | None, html: Path | None) -> None:
    """Raise `Refusal` where a report could not be written: before the bench, not after it.

    No directory is made but the one where reports go of which nobody said where.
    """
    Reports(json, html).require_writable()
    if json is None or html is None:
        # Where it cannot be made, neither can what was to stand in it.
        with suppress(OSError):
            _WHOLE.parent.mkdir(exist_ok=True)
    for beside in (_WHOLE, _IN_PART):
        Reports(json or beside.with_suffix(".json"), html or beside.with_suffix(".html")).require_writable()


application = typer.Typer(add_completion=False)


@application.command()
def main(
    *,
    quick: Annotated[
        bool, typer.Option(help="Only the targets P1 to P12, in fewer and shorter rounds: three minutes, less certain.")
    ] = False,
    only: Annotated[str, typer.Option(help=f"Only these parts, with commas between: {', '.join(PARTS)}.")] = "",
    json: Annotated[Path | None, typer.Option(help=_where("figures", "json"), show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(help=_where("charts", "html"), show_default=False)] = None,
) -> None:
    """Measure the service beside its peers.

    Ends with 0 where no target was missed, 1 where one was, 2 on trouble, 130 when interrupted. What was measured
    before that is kept.
    """
    parts = _parts_of(only, quick=quick)
    console = Console()
    began_at = time.monotonic()

    def say(sentence: str) -> None:
        console.print(
            f"[{time.monotonic() - began_at:6.0f} s] {sentence}", markup=False, highlight=False, soft_wrap=True
        )

    try:
        machine = this_machine()
        _require_writable(json, html)
    except (CannotBenchError, Refusal) as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True, style="bold red")
        raise typer.Exit(_EXIT_CANNOT) from None
    results = Results(machine, datetime.now(UTC).isoformat(timespec="seconds"), quick=quick, parts=parts)
    status = _run(QUICK if quick else WHOLE, results, say)
    results.rows.sort(key=_in_order)
    beside = _WHOLE if results.is_whole else _IN_PART
    json, html = json or beside.with_suffix(".json"), html or beside.with_suffix(".html")
    print_table(results.rows, console)
    try:
        results.write_json(json)
        write_page(results, html)
        where = f"Figures: {json}  Page: {html}"
    except OSError as problem:
        # They could be written when the bench began.
        where, status = f"A report cannot be written: {problem}", _EXIT_CANNOT
    say(f"{results.verdict}. {where}")
    if results.trouble:
        console.print(results.trouble, markup=False, highlight=False, style="bold red")
    raise typer.Exit(status)


def _run(effort: Effort, results: Results, say: Say) -> int:
    """Measure into `results`, and return the exit status."""
    try:
        uvloop.run(_until_told(bench(effort, results, say)))
    except (CannotBenchError, EngineFault) as error:
        results.trouble = str(error)
        return _EXIT_CANNOT
    except (KeyboardInterrupt, asyncio.CancelledError):
        results.trouble = "It was interrupted."
        return _EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever it is, what was measured before it is kept
        say(f"The bench breaks off here:\n{traceback.format_exc()}")
        results.trouble = f"An error that nobody expected: {error!r}"
        return _EXIT_CANNOT
    return _EXIT_MISSED if results.missed else 0


async def _until_told(work: Coroutine[None, None, None]) -> None:
    """Do some work; SIGTERM and SIGHUP cancel it, as Ctrl-C does, so that no engine is left running."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task


def _in_order(row: Row) -> tuple[bool, str, int, str]:
    """Return the place of a row: the targets first, P1 to P12, and what has no target of that list behind them."""
    parts = re.fullmatch(r"([A-Z]+)(\d*)(.*)", row.id)
    letters, digits, rest = parts.groups() if parts else (row.id, "", "")
    return letters != "P", letters, int(digits or 0), rest


if __name__ == "__main__":
    application()
