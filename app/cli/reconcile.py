"""`clocktower reconcile`: on what Redis and PostgreSQL disagree, and mending it while claims come and go.

What is merely unfinished is finished by a sweep, as the background worker does it. Only where the two contradict each
other is the release's state made anew: meanwhile, for milliseconds, its claims hear 503 and ask again.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from rich.table import Table
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.differences import Comparison, Difference, Mend, PoolFigures
from app.booking.gate.errors import GateError
from app.booking.gate.gate import Gate
from app.booking.gate.sweep import BATCH_LIMIT
from app.cli import surroundings
from app.cli.database import with_engine
from app.cli.refusal import EXIT_WRONG, Refusal, out, say
from app.cli.upkeep import Servers, all_in_use, servers
from app.core.problems import Problem

# Sentences about one release; what they have in common shows in the first of them.
_SENTENCES_MAX: Final = 20
# Rounds of mending. One is enough but where something happens to the release meanwhile.
_ROUNDS_MAX: Final = 3
_NUMBERS: Final = ("epoch", "places", "held", "waiting", "free", "pending", "differences")


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One release: how it was found, what was done, and how it is now."""

    before: Comparison
    done: tuple[str, ...]
    after: Comparison


def reconcile(data_dir: Path, release_ids: Sequence[UUID], *, dry_run: bool, rebuild: bool) -> None:
    """Compare releases, all that are in use where none is named, and mend them unless it is a dry run.

    `rebuild` makes their states anew whatever is found. Raises `Refusal`, with status 1 when a difference is left.
    """
    settings = surroundings.enter(data_dir)

    async def work(engine: AsyncEngine) -> list[Reconciled]:
        async with servers(settings, engine) as at:
            chosen = release_ids or await all_in_use(at)
            return [await _reconcile_one(at, chosen_id, dry_run=dry_run, rebuild=rebuild) for chosen_id in chosen]

    try:
        releases = with_engine(settings, work)
    except GateError as error:
        raise Refusal(f"A release's state could not be read: {error}. Try again.") from error
    if not releases:
        say("No published release is in use.")
        return
    out.print(_table(releases))
    for release in releases:
        for sentence in _sentences(release):
            out.print(Text(sentence), soft_wrap=True)
    differing = [release.after for release in releases if not release.after.agrees]
    if differing:
        names = " ".join(str(comparison.release_id) for comparison in differing)
        to_mend = f"To mend: {surroundings.again(f'reconcile {names}', data_dir)}"
        raise Refusal(
            f"{len(differing)} of {len(releases)} releases differ. "
            + (to_mend if dry_run else "They still do: look into the servers' logs."),
            exit_status=EXIT_WRONG,
        )


async def _reconcile_one(at: Servers, release_id: UUID, *, dry_run: bool, rebuild: bool) -> Reconciled:
    found = await at.gate.compare(release_id)
    if found is None:
        raise Refusal(f"There is no published release {release_id}.")
    if dry_run:
        return Reconciled(found, (), found)
    done: list[str] = []
    now = found
    if rebuild:
        await at.gate.rebuild(release_id)
        now = await _again(at.gate, release_id)
        done.append(f"made anew by hand, in epoch {now.epoch}")
    for _ in range(_ROUNDS_MAX):
        if now.agrees:
            break
        done += await mend(at.gate, now)
        now = await _again(at.gate, release_id)
    return Reconciled(found, tuple(done), now)


async def mend(gate: Gate, found: Comparison) -> list[str]:
    """Do away with differences, by a sweep if that is enough; return what was done."""
    if found.to_be(Mend.REBUILD):
        # It reads the truth anew, and with it all that a sweep would have brought.
        done = await _tried(lambda: gate.rebuild(found.release_id, after_epoch=found.gate_epoch))
        return [done or "made anew from PostgreSQL"]
    sweeps = len(found.differences) // BATCH_LIMIT + 1
    done = None
    for _ in range(sweeps):
        done = done or await _tried(lambda: gate.sweep(found.release_id))
    return [done or "swept"]


async def _tried(step: Callable[[], Awaitable[None]]) -> str | None:
    """Return why a step could not be taken: somebody else is at it, mostly."""
    try:
        await step()
    except (Problem, GateError) as error:
        return f"not mended at this try ({type(error).__name__})"
    return None


async def _again(gate: Gate, release_id: UUID) -> Comparison:
    comparison = await gate.compare(release_id)
    if comparison is None:
        raise Refusal(f"Release {release_id} is not published any more.")
    return comparison


def _table(releases: Iterable[Reconciled]) -> Table:
    table = Table(title="gate / PostgreSQL", title_justify="left", header_style="bold")
    table.add_column("release")
    for heading in _NUMBERS:
        table.add_column(heading, justify="right")
    for release in releases:
        found = release.before
        epoch = _both(found.gate_epoch, found.epoch)
        table.add_row(found.title, epoch, *_figures(found.pools), str(len(found.differences)))
        for ordinal, pool in enumerate(found.pools):
            count = sum(difference.ordinal == ordinal for difference in found.differences)
            if count:
                table.add_row(f"  {pool.title}", "", *_figures([pool]), str(count))
        if release.after is not found:
            after = release.after
            epoch = _both(after.gate_epoch, after.epoch)
            table.add_row("  now", epoch, *_figures(after.pools), str(len(after.differences)))
        table.add_section()
    return table


def _figures(pools: Sequence[PoolFigures]) -> tuple[str, ...]:
    return (
        str(sum(pool.places for pool in pools)),
        _both(_sum(pool.gate_held for pool in pools), sum(pool.held for pool in pools)),
        _both(_sum(pool.gate_waiting for pool in pools), sum(pool.waiting for pool in pools)),
        _both(_sum(pool.gate_free for pool in pools), sum(pool.places - pool.held for pool in pools)),
        _shown(_sum(pool.gate_pending for pool in pools)),
    )


def _sum(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _shown(number: int | None) -> str:
    return "–" if number is None else str(number)


def _both(gate: int | None, database: int) -> str:
    return f"{_shown(gate)} / {database}"


def _sentences(release: Reconciled) -> Iterator[str]:
    found, name = release.before, f"{release.before.title} ({release.before.release_id})"
    if found.gate_epoch is None and found.agrees:
        yield f"{name}: the gate has no state yet; whoever asks first has it made."
    elif found.agrees:
        yield f"{name}: the gate and PostgreSQL agree."
    else:
        yield f"{name}: {counted(found.differences)}."
        yield from (f"  {difference.sentence}" for difference in found.differences[:_SENTENCES_MAX])
        if len(found.differences) > _SENTENCES_MAX:
            yield f"  … and {len(found.differences) - _SENTENCES_MAX} more."
    if release.done:
        state = "they agree now" if release.after.agrees else counted(release.after.differences)
        yield f"  → {', then '.join(release.done)}; {state}."
        if not release.after.agrees:
            yield from (f"  {difference.sentence}" for difference in release.after.differences[:_SENTENCES_MAX])


def counted(differences: Sequence[Difference]) -> str:
    """Return how many differences there are, and what they take, in words."""
    contradictions = sum(difference.mend is Mend.REBUILD for difference in differences)
    unfinished = len(differences) - contradictions
    parts = [
        f"{contradictions} contradiction{'' if contradictions == 1 else 's'}" if contradictions else "",
        f"{unfinished} thing{'' if unfinished == 1 else 's'} left unfinished" if unfinished else "",
    ]
    return " and ".join(part for part in parts if part)
