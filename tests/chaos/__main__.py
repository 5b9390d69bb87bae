"""`python -m tests.chaos`: plays rounds of faults, prints what held, and writes build/chaos.json."""

import asyncio
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console

from app.cli.serve import raise_file_limit
from app.core.embedded import EngineFault
from app.core.settings import ENVIRONMENT_PREFIX
from tests.chaos.city import FAULTS_OF_A_CITY, City
from tests.chaos.engines import SmallDisk, Template
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.report import print_storms, print_table, print_trouble, summary, told, violations_in, write_json
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


def deck(seed: str, faults: list[Fault]) -> Iterator[Fault]:
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

    Ends with 0 where everything held, 1 where something did not, 2 on trouble, 130 when interrupted.
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
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        del os.environ[name]
    raise_file_limit()
    outcomes: list[Outcome] = []
    rounds = rounds or len(chosen)
    # A run of some faults, or of one round, leaves the report of a whole run alone.
    is_whole = not only and not only_round
    report = json or (_REPORT_ON_A_CITY if places else _REPORT if is_whole else _REPORT_ON_A_PART)
    status = _run(chosen, outcomes, console, seed=seed, rounds=rounds, only_round=only_round, places=places)
    print_table(outcomes, console)
    print_storms(outcomes, console)
    write_json(report, seed, outcomes)
    again = f"make chaos SEED={seed} ROUNDS={rounds}" + (f' ARGS="--places {places}"' if places else "")
    console.print(f"Everything: {report}  Again: {again}", highlight=False, soft_wrap=True)
    console.print(f"Seed {seed}: {summary(outcomes)}", style="bold", highlight=False)
    raise typer.Exit(status)


def _chosen(only: str, faults: Sequence[Fault]) -> list[Fault]:
    known = {fault.name: fault for fault in faults}
    names = [name.strip() for name in only.split(",") if name.strip()] if only else list(known)
    unknown = sorted(set(names) - set(known))
    if unknown or not names:
        raise typer.BadParameter(f"{', '.join(unknown) or 'no fault'}: choose from {', '.join(known)}")
    return [known[name] for name in names]


def _run(
    faults: list[Fault],
    outcomes: list[Outcome],
    console: Console,
    *,
    seed: str,
    rounds: int,
    only_round: int,
    places: int,
) -> int:
    directory = Path(tempfile.mkdtemp(prefix="clocktower-chaos-"))
    try:
        console.print("Making a cluster to copy for each round", highlight=False)
        play_one = _player(directory, places, seed, console)
        uvloop.run(_until_told(_play_all(faults, outcomes, console, play_one, seed, rounds, only_round)))
    except EngineFault as fault:
        console.print(str(fault), style="bold red", highlight=False)
        return _EXIT_CANNOT
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("It was interrupted.", style="bold red")
        return _EXIT_INTERRUPTED
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return _EXIT_BROKEN if any(map(violations_in, outcomes)) else 0


def _player(directory: Path, places: int, seed: str, console: Console) -> _Play:
    """Make what each round gets a copy of; return what plays a round of this number."""
    if places:
        city = City.found(directory, places, lambda sentence: console.print(sentence, highlight=False))
        return partial(city.play, seed=seed, directory=directory)
    template = Template.make(directory, lambda _sentence: None)
    return partial(play, seed=seed, template=template, directory=directory)


async def _play_all(
    faults: list[Fault],
    outcomes: list[Outcome],
    console: Console,
    play_one: _Play,
    seed: str,
    rounds: int,
    only_round: int,
) -> None:
    began_at = time.monotonic()
    for number, fault in zip(range(1, rounds + 1), deck(seed, faults), strict=False):
        if only_round and number != only_round:
            continue
        outcome = await play_one(number, fault)
        for _ in range(_TRIES_MORE):
            if outcome.missed and outcome.is_well:
                # A worker was to die at a point to which none came in time, say.
                outcome = await play_one(number, fault)
        if outcome.missed and not outcome.trouble:
            outcome.trouble = f"the fault found nothing to strike, {1 + _TRIES_MORE} times"
        outcomes.append(outcome)
        at = f"[{time.monotonic() - began_at:6.0f} s] {number} of {rounds}"
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
