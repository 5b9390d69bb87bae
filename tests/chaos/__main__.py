"""`python -m tests.chaos`: plays rounds of faults, prints what held, and writes build/chaos.json."""

import asyncio
import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console

from app.cli.refusal import Refusal
from app.cli.rehearse import Reports
from app.cli.serve import raise_file_limit
from app.core.embedded import EngineFault
from app.core.settings import ENVIRONMENT_PREFIX
from tests.chaos.city import FAULTS_OF_A_CITY, City
from tests.chaos.engines import SmallDisk, Template
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.report import (
    Run,
    again,
    print_storms,
    print_table,
    print_trouble,
    summary,
    told,
    violations_in,
    write_json,
)
from tests.chaos.rounds import Outcome, play

_REPORT: Final = Path("build/chaos.json")
_REPORT_ON_A_PART: Final = Path("build/chaos-part.json")
_REPORT_ON_A_CITY: Final = Path("build/chaos-city.json")
# How often a round is played again in which the fault found nothing to strike.
_TRIES_MORE: Final = 3
_EXIT_BROKEN: Final = 1
_EXIT_CANNOT: Final = 2
_EXIT_INTERRUPTED: Final = 130

application = typer.Typer(add_completion=False)
_Play = Callable[[int, Fault], Awaitable[Outcome]]


def deck(seed: str, faults: Sequence[Fault]) -> Iterator[Fault]:
    """Yield faults without end: all of them in an order drawn from the seed, then all of them again in another."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(faults, len(faults))


@application.command()
def main(
    *,
    seed: Annotated[str, typer.Option(help="What the rounds are drawn from; the same seed draws the same.")] = "1",
    rounds: Annotated[int, typer.Option(min=0, help="How many rounds (0: each fault once).")] = 0,
    only: Annotated[str, typer.Option(help="Only these faults, with commas between.")] = "",
    only_round: Annotated[int, typer.Option(min=0, help="Only the round of this number (0: all of them).")] = 0,
    places: Annotated[
        int, typer.Option(min=0, help="No opening, but a release of so many booked places: how long is it away?")
    ] = 0,
    json: Annotated[Path | None, typer.Option(help="Where everything is written.")] = None,
    faults: Annotated[bool, typer.Option("--faults", help="List the faults and end.")] = False,
) -> None:
    """Break the service in the middle of an opening, again and again, and check that every promise held.

    Ends with 0 where everything held, 1 where something did not, 2 on trouble, 130 when interrupted. The rounds that
    were played before that are kept.
    """
    console = Console()
    if faults:
        for fault in FAULTS.values():
            console.print(f"{fault.name:28} {fault.what}", highlight=False, soft_wrap=True)
        return
    chosen = _chosen(only, FAULTS_OF_A_CITY if places else list(FAULTS.values()))
    if not SmallDisk.is_possible() and any(fault.on_a_small_disk for fault in chosen):
        console.print("Left out: disk_full, which needs the right to mount a small file system (root).", style="yellow")
        chosen = [fault for fault in chosen if not fault.on_a_small_disk]
    run = Run(seed, chosen, rounds or len(chosen), is_of_some=bool(only), only_round=only_round, places=places)
    _require_something_to_play(run)
    try:
        _require_writable(json)
    except Refusal as refusal:
        console.print(str(refusal), style="bold red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(_EXIT_CANNOT) from None
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        del os.environ[name]
    raise_file_limit()
    status = _play_run(run, console)
    print_table(run.outcomes, console)
    print_storms(run.outcomes, console)
    report = json or _report_of(run)
    try:
        write_json(report, run)
        where = f"Everything: {report}"
    except OSError as problem:
        # It could be written when the run began.
        where, status = f"{report} cannot be written ({problem.strerror}).", _EXIT_CANNOT
    console.print(f"{where}  Again: {again(run)}", markup=False, highlight=False, soft_wrap=True)
    console.print(summary(run), style="bold", markup=False, highlight=False)
    raise typer.Exit(status)


def _chosen(only: str, faults: Sequence[Fault]) -> list[Fault]:
    known = {fault.name: fault for fault in faults}
    names = [name.strip() for name in only.split(",") if name.strip()] if only else list(known)
    unknown = sorted(set(names) - set(known))
    if unknown or not names:
        raise typer.BadParameter(f"{', '.join(unknown) or 'no fault'}: choose from {', '.join(known)}")
    return [known[name] for name in names]


def _require_something_to_play(run: Run) -> None:
    """Refuse a run of no rounds: that nothing broke in it would say nothing."""
    if not run.faults:
        raise typer.BadParameter("no fault is left that can be played here")
    if run.only_round > run.rounds:
        raise typer.BadParameter(f"there is no round {run.only_round} of {run.rounds}: ask for more with --rounds")


def _require_writable(json: Path | None) -> None:
    """Raise `Refusal` where the report could not be written: before the run, not after it.

    No directory is made but the one where reports go of which nobody said where.
    """
    if json is not None:
        Reports(json).require_writable()
        return
    # Where it cannot be made, neither can what was to stand in it.
    with suppress(OSError):
        _REPORT.parent.mkdir(exist_ok=True)
    for report in (_REPORT, _REPORT_ON_A_PART, _REPORT_ON_A_CITY):
        Reports(report).require_writable()


def _report_of(run: Run) -> Path:
    """Return where a run is written of which nobody said where; what is not whole leaves a whole run's alone."""
    if not run.is_whole:
        return _REPORT_ON_A_PART
    return _REPORT_ON_A_CITY if run.places else _REPORT


def _play_run(run: Run, console: Console) -> int:
    """Play its rounds, note in it what came of them, and return the exit status."""
    try:
        with tempfile.TemporaryDirectory(prefix="clocktower-chaos-", ignore_cleanup_errors=True) as directory:
            console.print("Making a cluster to copy for each round", highlight=False)
            play_one = _player(Path(directory), run, console)
            uvloop.run(_until_told(_play_all(run, console, play_one)))
    except EngineFault as fault:
        run.trouble, status = str(fault), _EXIT_CANNOT
    except (KeyboardInterrupt, asyncio.CancelledError):
        run.trouble, status = "It was interrupted.", _EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever it is, the rounds before it are kept
        console.print(traceback.format_exc(), markup=False, highlight=False, soft_wrap=True)
        run.trouble, status = f"An error that nobody expected: {error!r}", _EXIT_CANNOT
    else:
        return _EXIT_BROKEN if any(map(violations_in, run.outcomes)) else 0
    console.print(run.trouble, style="bold red", markup=False, highlight=False, soft_wrap=True)
    return status


def _player(directory: Path, run: Run, console: Console) -> _Play:
    """Make what each round gets a copy of; return what plays a round of this number."""
    if run.places:
        city = City.found(directory, run.places, lambda sentence: console.print(sentence, highlight=False))
        return partial(city.play, seed=run.seed, directory=directory)
    template = Template.make(directory, lambda _sentence: None)
    return partial(play, seed=run.seed, template=template, directory=directory)


async def _play_all(run: Run, console: Console, play_one: _Play) -> None:
    began_at = time.monotonic()
    for number, fault in zip(range(1, run.rounds + 1), deck(run.seed, run.faults), strict=False):
        if run.only_round and number != run.only_round:
            continue
        outcome = await play_one(number, fault)
        for _ in range(_TRIES_MORE):
            if outcome.missed and outcome.is_well:
                # A worker was to die at a point to which none came in time, say.
                outcome = await play_one(number, fault)
        if outcome.missed and not outcome.trouble:
            outcome.trouble = f"the fault found nothing to strike, {1 + _TRIES_MORE} times"
        run.outcomes.append(outcome)
        at = f"[{time.monotonic() - began_at:6.0f} s] {number} of {run.rounds}"
        console.print(f"{at} {told(outcome)}", markup=False, highlight=False, soft_wrap=True)
        if not outcome.is_well:
            print_trouble(outcome, console)


async def _until_told(work: Coroutine[None, None, None]) -> None:
    """Do some work; SIGTERM and SIGHUP cancel it, as Ctrl-C does, so that nothing is left running."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task


if __name__ == "__main__":
    application()
