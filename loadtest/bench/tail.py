"""How long parents wait: at a steady load, at the opening second, and in the worst case.

Latencies come from the open loop (see `open_loop`). Loads are shares of what one worker was just seen to do in a closed
loop, so a machine that is slow at the moment is not asked for what it cannot do.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from loadtest.bench.latencies import Latencies, Quantiles
from loadtest.bench.machine import CannotBenchError, kept_waiting_seconds, stolen_seconds
from loadtest.bench.open_loop import burst_arrivals, poisson_arrivals, run_open_loop
from loadtest.bench.opening import ANSWERED, LAST_PLACE
from loadtest.bench.results import Curve, Picture, Row, Spread, Target, value_at_most
from loadtest.bench.stage import Server, Stage
from loadtest.bench.town import BenchRelease, book_places, claim_requests, make_town_release
from loadtest.bench.wrk import replay_file, run_wrk

# Of what a closed loop of as many phones gets, in hundredths.
_LOADS: Final = (25, 50, 75, 90)
# Phones that keep a connection; at a steady load they take turns. Connections have their price: a thousand in turns
# get an eighth less than a hundred do.
_PHONES: Final = 1_000
# So many that hardly anybody comes back within a second, as at a real opening.
_REFUSED_PARENTS: Final = 40_000
_BURST_PARENTS: Final = 5_000
# Two thirds of the crowd come within 100 ms, nineteen of twenty within 300, everybody within the second.
_BURST_MEAN_SECONDS: Final = 0.1
_BURST_WITHIN_SECONDS: Final = 1.0
# What was admitted is in PostgreSQL by then, or it will not be.
_BOOKED_SECONDS_MAX: Final = 20.0
_LOOK_EVERY_SECONDS: Final = 0.1
_REFUSED: Final = 409
_BOOKED: Final = 201
# Which of the loads has a target, and the one of the opening second, in ms.
_TARGETS: Final[Mapping[int, Target]] = {75: value_at_most(50)}
_BURST_TARGET: Final = value_at_most(1_500)
_BURST_WHAT: Final = f"opening second: {_BURST_PARENTS:,} parents, most in 300 ms, 300 places, one worker"
_X_LABEL: Final = "share of answers that were quicker, in nines (1: 90 %, 2: 99 %, 3: 99.9 %)"


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the open loop, for how long the server was kept from its core in it, and this machine from its own."""

    latencies: Latencies
    kept_ms: float
    stolen_ms: float


async def tail(
    stage: Stage, wrk: str, *, rounds: int, seconds: float, say: Callable[[str], None]
) -> tuple[list[Row], list[Picture]]:
    """Return the rows T25 to T90 and TB, and their curves. Raises `CannotBenchError`."""
    server = await stage.one_worker()
    loads = await _steady(stage, wrk, server, seconds=seconds, rounds=rounds, say=say)
    bursts = [await _burst(stage, server, seed=number + 1, say=say) for number in range(rounds)]
    rows = [_row_of_load(load, runs) for load, runs in loads.items()]
    return [*rows, *_rows_of_bursts(bursts)], [_picture_of_loads(loads), _picture_of_bursts(bursts)]


async def opening_second(stage: Stage, *, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Return the rows P6 and P7 of the opening's second alone. Raises `CannotBenchError`."""
    server = await stage.one_worker()
    runs: list[_Run] = []
    for number in range(rounds):
        say(f"Opening {number + 1} of {rounds}: its second, {_BURST_PARENTS:,} parents")
        runs.append(await _burst(stage, server, seed=number + 1, say=say))
    last_place = [run.latencies.by_status[_BOOKED].last_ms / 1e3 for run in runs]
    answered = [run.latencies.all.p99_ms / 1e3 for run in runs]
    note = "The opening's second alone, with passes signed before; a whole run rehearses all that parents do."
    return [
        Row("P6", f"{_BURST_WHAT}: last place answered after", "s", Spread.of(last_place), LAST_PLACE, note=note),
        Row("P7", f"{_BURST_WHAT}: everybody answered, p99", "s", Spread.of(answered), ANSWERED, note=note),
    ]


async def _steady(
    stage: Stage, wrk: str, server: Server, *, seconds: float, rounds: int, say: Callable[[str], None]
) -> Mapping[int, Sequence[_Run]]:
    """Run every load in every round, each behind a closed loop that tells what it is a share of."""
    say("Tail: making a sold-out release, and the claims of its parents")
    # In one transaction: no sweep is to make the release's state before it is booked.
    async with stage.database() as database, database.transaction():
        release = await make_town_release(database)
        await book_places(database, release, places=release.places, accounts=release.places)
    await stage.epoch_in_force(server, release)
    loads: dict[int, list[_Run]] = {load: [] for load in _LOADS}
    claims = claim_requests(stage.signer, release, count=_REFUSED_PARENTS, seed=0)
    async with replay_file(claims) as replay:
        for number in range(rounds):
            say(f"  round {number + 1} of {rounds}")
            for load in _LOADS:
                # Each time anew: within seconds a machine may have half as much to give.
                closed = await run_wrk(wrk, server.address, replay, seconds=seconds, connections=_PHONES)
                arrivals = poisson_arrivals(closed.per_second * load / 100, seconds, seed=number)
                run = await _observed(server, replay, arrivals, phones=_PHONES)
                loads[load].append(run)
                told = f"{_told(run.latencies.all)}, stolen {run.stolen_ms:.0f} ms{_doubt(run)}"
                say(f"    at {load} % of {closed.per_second:,.0f}/s: {told}")
                _require(run.latencies, {_REFUSED})
    return loads


async def _burst(stage: Stage, server: Server, *, seed: int, say: Callable[[str], None]) -> _Run:
    """Open a release to a crowd whose connections stand. Who loses does not come again."""
    async with stage.database() as database:
        release = await make_town_release(database)
    await stage.epoch_in_force(server, release)
    # A claim has its id for itself, in whichever release.
    claims = claim_requests(stage.signer, release, count=_BURST_PARENTS, seed=seed)
    arrivals = burst_arrivals(
        _BURST_PARENTS, mean_seconds=_BURST_MEAN_SECONDS, within_seconds=_BURST_WITHIN_SECONDS, seed=seed
    )
    async with replay_file(claims) as replay:
        run = await _observed(server, replay, arrivals, phones=_BURST_PARENTS)
    say(f"  burst {seed}: {_told(run.latencies.all)}{_doubt(run)}")
    _require(run.latencies, {_BOOKED, _REFUSED})
    await _require_booked(stage, release)
    return run


async def _observed(server: Server, replay: Path, arrivals: Sequence[float], *, phones: int) -> _Run:
    kept_before, stolen_before = kept_waiting_seconds(server.pids), stolen_seconds()
    latencies = await run_open_loop(server.address, replay, arrivals, connections=phones, connections_max=2 * phones)
    kept_ms = (kept_waiting_seconds(server.pids) - kept_before) * 1e3
    return _Run(latencies, kept_ms, (stolen_seconds() - stolen_before) * 1e3)


def _require(latencies: Latencies, statuses: set[int]) -> None:
    """Raise `CannotBenchError` where something else was answered than what is to be measured, or nothing at all."""
    if latencies.lost or not set(latencies.statuses) <= statuses:
        raise CannotBenchError(
            f"The open loop was to hear {sorted(statuses)} only; it heard {latencies.statuses}, and of "
            f"{latencies.arrivals} answers {latencies.lost} were lost."
        )


async def _require_booked(stage: Stage, release: BenchRelease) -> None:
    """Raise `CannotBenchError` unless each place has somebody, in PostgreSQL."""
    deadline = time.monotonic() + _BOOKED_SECONDS_MAX
    async with stage.database() as database:
        while True:
            booked: int = await database.fetchval(
                "SELECT count(*) FROM booking JOIN pool ON pool.id = booking.pool_id WHERE pool.release_id = $1",
                release.release_id,
            )
            if booked == release.places:
                return
            if time.monotonic() > deadline:
                raise CannotBenchError(f"Of {release.places} places {booked} were booked in a crowd that wanted all.")
            await asyncio.sleep(_LOOK_EVERY_SECONDS)


def _row_of_load(load: int, runs: Sequence[_Run]) -> Row:
    return Row(
        id=f"T{load}",
        what=f"refusals at {load} % of what {_PHONES:,} phones can get of one worker, arriving when they like: p99",
        unit="ms",
        value=Spread.of([run.latencies.all.p99_ms for run in runs]),
        target=_TARGETS.get(load),
        note=_note([run.latencies.all for run in runs], runs),
    )


def _rows_of_bursts(runs: Sequence[_Run]) -> list[Row]:
    everybody = [run.latencies.all for run in runs]
    rows = [
        Row(
            id="TB",
            what=f"{_BURST_WHAT}: everybody answered, p99",
            unit="ms",
            value=Spread.of([quantiles.p99_ms for quantiles in everybody]),
            target=_BURST_TARGET,
            note=_note(everybody, runs),
        )
    ]
    for row_id, who, status in (("TB-won", "winners", _BOOKED), ("TB-lost", "losers", _REFUSED)):
        theirs = [run.latencies.by_status[status] for run in runs]
        p99s = Spread.of([quantiles.p99_ms for quantiles in theirs])
        rows.append(Row(row_id, f"the same: {who}, p99", "ms", p99s, None, note=_note(theirs, runs)))
    last = Spread.of([run.latencies.by_status[_BOOKED].last_ms for run in runs])
    note = "From the opening to the last answer of a winner; the crowd itself comes within a second."
    rows.append(Row("TB-last", "the same: last place answered, from the opening", "ms", last, None, note=note))
    return rows


def _note(shown: Sequence[Quantiles], runs: Sequence[_Run]) -> str:
    late_p99_ms = median(run.latencies.late_p99_ms for run in runs)
    late_max_ms = max(run.latencies.late_max_ms for run in runs)
    note = (
        f"p50 {median(q.p50_ms for q in shown):.1f}, p99.9 {median(q.p999_ms for q in shown):.1f}, "
        f"max {max(q.max_ms for q in shown):.1f} ms; the generator was late by {late_p99_ms:.1f} (p99) to "
        f"{late_max_ms:.1f} ms, and the server kept from its core for up to {max(run.kept_ms for run in runs):.0f} ms "
        f"in a run; the host took the cores away for up to {max(run.stolen_ms for run in runs):.0f} ms."
    )
    # Lateness only ever adds to a latency. To leave such runs out would keep those in which the server was slow, too.
    doubtful = sum(run.latencies.fault is not None for run in runs)
    if not doubtful:
        return note
    return f"{note} In {doubtful} of {len(runs)} runs the generator was late itself: these are upper bounds."


def _told(quantiles: Quantiles) -> str:
    return f"p50 {quantiles.p50_ms:.1f}, p99 {quantiles.p99_ms:.1f}, max {quantiles.max_ms:.1f} ms"


def _doubt(run: _Run) -> str:
    return "" if run.latencies.fault is None else f" - an upper bound only: {run.latencies.fault}"


def _middle(runs: Sequence[_Run]) -> Latencies:
    """Return the run whose p99 is in the middle."""
    ordered = sorted((run.latencies for run in runs), key=lambda latencies: latencies.all.p99_ms)
    return ordered[len(ordered) // 2]


def _picture_of_loads(loads: Mapping[int, Sequence[_Run]]) -> Picture:
    return Picture(
        title="How long a refusal takes, by load",
        x_label=_X_LABEL,
        y_label="ms",
        curves=tuple(Curve(f"{load} %", _middle(runs).all.curve) for load, runs in loads.items()),
        remark="Shares of what one worker can do in a closed loop; of each load the run with the middle p99.",
    )


def _picture_of_bursts(runs: Sequence[_Run]) -> Picture:
    middle = _middle(runs)
    return Picture(
        title="How long parents wait in the opening second",
        x_label=_X_LABEL,
        y_label="ms",
        curves=(
            Curve("winners", middle.by_status[_BOOKED].curve),
            Curve("losers", middle.by_status[_REFUSED].curve),
        ),
        remark=f"{_BURST_PARENTS:,} parents, 300 places in 14 pools, three choices each; nobody asks twice.",
    )
