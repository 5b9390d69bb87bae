"""Does a claim cost the same behind a million bookings as in a town of 300 places? And what else grows with size.

Each size has a database and a server of its own, or the town's three hundred would be found in the indexes of the
million. What is compared is the processor time of a claim, which other work on the machine moves least; sizes take
turns all the same.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, cast

from redis.asyncio import Redis

from app.booking.gate.keys import BALLAST_FIELD, EpochKeys, meta_key
from loadtest.bench.city import (
    City,
    Say,
    claims_of_strangers,
    found_city,
    in_force,
    vain_wishes,
    wishes_that_come_true,
)
from loadtest.bench.duel import Lap, Laps, Side, middle_of, take_turns
from loadtest.bench.machine import CannotBenchError, resident_bytes
from loadtest.bench.reads import reads
from loadtest.bench.refusals import Refusals
from loadtest.bench.results import Curve, Picture, Row, Spread, ratio_at_most, value_at_most
from loadtest.bench.stage import Spent, Stage
from loadtest.bench.town import TOWN_POOLS, BenchRelease, publish
from loadtest.bench.wrk import replay_file, run_wrk

CONNECTIONS: Final = 128
# Others in nearly every tick, in a town as in a city.
REFUSED_PARENTS: Final = 20_000
# A lap of winners gives away as many places as so many releases of a town have.
_TOWNS_A_LAP: Final = 10
# Laps until hardly a page of the indexes is touched for the first time since PostgreSQL's checkpoint after the load.
_WINNERS_WARM_UP_LAPS_MAX: Final = 3
# wrk runs for as long as it was told to, even when everything is sent.
_WINNERS_SECONDS: Final = 1.0
# Confirmations reach Redis some 50 ms behind the commit, and a commit that is under way ends.
_SETTLING_SECONDS: Final = 0.5
_LOOK_EVERY_SECONDS: Final = 0.05
_REBUILDS: Final = 2
_LOOK_UPS: Final = 1_000
# A worker at rest, and a place in Redis.
_WORKER_MB_MAX: Final = 120
_PLACE_BYTES_MAX: Final = 300
_GROWTH_MAX: Final = 1.2
# For so long a release of a million places may be away after a fault.
_REBUILD_SECONDS_MAX: Final = 15
# What the reader of a figure has to know that it does not say.
_OF_WINNERS: Final = (
    "The first laps, of 3,000 winners each, are not counted. After each of PostgreSQL's checkpoints, a page that is "
    "touched for the first time goes whole into its log: among a million bookings each winner touches about two such "
    "pages at first, fewer later."
)

_COUNT: Final = "SELECT count(*) FROM booking WHERE pool_id = ANY ($1) AND status = 'confirmed'"


@dataclass(frozen=True, slots=True)
class _Founded:
    """A city, and what was found out about it before any claim."""

    city: City
    worker_bytes: int
    redis_bytes: float
    rebuild_seconds: tuple[float, ...]
    rebuild_us: Spent

    @property
    def name(self) -> str:
        return f"{self.city.places:,} places"


async def growth(
    stage: Stage,
    wrk: str,
    *,
    sizes: Sequence[int],
    rounds: int,
    seconds: float,
    say: Say,
    accounts: Mapping[int, int] | None = None,
    with_reads: bool = True,
) -> tuple[list[Row], list[Picture]]:
    """Return the rows P8, P11 and G1, `with_reads` G2 and G3, and pictures of all that by size.

    `sizes` are numbers of places, the smallest first. `accounts` says how many accounts hold them; unless told, as many
    as there are places. Raises `CannotBenchError`.
    """
    founded: list[_Founded] = []
    for places in sizes:
        say(f"Growth: founding a city of {places:,} places")
        open_places = (rounds + _warm_up_laps(rounds)) * _TOWNS_A_LAP * sum(TOWN_POOLS)
        city = await found_city(
            stage, places=places, accounts=(accounts or {}).get(places, places), open_places=open_places, say=say
        )
        founded.append(await _look_at(stage, city, say))
    await stage.checkpoint()
    say("Growth: the cost of a claim, size by size")
    refused, won = await _claims(stage, wrk, founded, rounds=rounds, seconds=seconds, say=say)
    small, large = founded[0], founded[-1]
    rows = [
        _grown(refused, large, small, row_id="P8", what="a refusal", note=_of_refusals(large, small)),
        _grown(won, large, small, row_id="P8b", what="a winner", note=_OF_WINNERS),
        *_memory_rows(large),
        _rebuild_row(large),
    ]
    if with_reads:
        rounds = -(-rounds // 2)
        rows += await reads(stage, wrk, small=small.city, large=large.city, rounds=rounds, seconds=seconds, say=say)
    return rows, _pictures(founded, refused, won)


async def _look_at(stage: Stage, city: City, say: Say) -> _Founded:
    """Measure what a worker at rest has in memory, how long the state takes to make, and how large it is."""
    worker_bytes = resident_bytes(city.server.pids[0])
    async with city.database() as database:
        # What a server takes for its first release, connections and scripts, is not part of the second.
        await in_force(city, await publish(database, [1]))
    redis = Redis.from_url(stage.engines.redis_url)  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
    try:
        before, spent_before = (await _memory(redis))["used_memory"], stage.spent(city.server)
        took = [await in_force(city, city.release)]
        spent = stage.spent(city.server) - spent_before
        used = (await _memory(redis))["used_memory"] - before
        while len(took) < _REBUILDS:
            # As the service itself does it when a state is not to be believed any more (`rebuild.suspend`).
            await redis.hdel(meta_key(city.release.release_id), "identity")  # pyright: ignore[reportGeneralTypeIssues] - sync and async in one type
            took.append(await in_force(city, city.release))
        await _end_growing(redis, city)
        # What is freed beside the next laps would be told as their work.
        while (await _memory(redis))["lazyfree_pending_objects"]:  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
    finally:
        await redis.aclose()
    places = city.release.places
    say(
        f"  {city.places:,} places: state made in {min(took):.2f} s ({spent.each(places).total:.1f} µs a place), "
        f"{used / city.places:.0f} bytes a place in Redis"
    )
    return _Founded(city, worker_bytes, used / city.places, tuple(took), spent.each(places))


async def _end_growing(redis: Redis, city: City) -> None:
    """Look up so often that Redis has moved the last of each hash into the larger table that it grows into.

    It moves some with every look-up. After a load that ends soon after a doubling, as a million does, the next hundred
    thousand claims would pay for the load; where claims have filled a release, they have paid already.
    """
    async with city.database() as database:
        epoch: int = await database.fetchval("SELECT epoch FROM release WHERE id = $1", city.release.release_id)
    keys = EpochKeys(city.release.release_id, epoch)
    nobody = [BALLAST_FIELD] * _LOOK_UPS
    for key in (keys.claims, keys.people, keys.accounts):
        for _ in range(city.places // _LOOK_UPS + 1):
            await redis.hmget(key, nobody)  # pyright: ignore[reportGeneralTypeIssues, reportUnknownMemberType] - sync and async in one type


async def _memory(redis: Redis) -> dict[str, int]:
    return cast("dict[str, int]", await redis.info("memory"))  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs


async def _claims(
    stage: Stage, wrk: str, founded: Sequence[_Founded], *, rounds: int, seconds: float, say: Say
) -> tuple[Laps, Laps]:
    """Return the laps of refusals and those of winners, both by the name of the city."""
    async with AsyncExitStack() as stack:
        sides: list[Side] = []
        for one in founded:
            city = one.city
            claims = claims_of_strangers(stage.signer, city.release, vain_wishes(city, REFUSED_PARENTS))
            replay = await stack.enter_async_context(replay_file(claims))
            contest = Refusals(stage, wrk, city.release, seconds=seconds)
            sides.append(await contest.side(f"refusals, {one.name}", "", city.server, claims, replay, refuses=True))
            giving_away = _GivingAway(stage, wrk, city).lap
            sides.append(Side(f"winners, {one.name}", "", giving_away, warm_up_laps=_warm_up_laps(rounds)))
        laps = await take_turns(sides, rounds=rounds, say=say)
    return (
        {one.name: laps[f"refusals, {one.name}"] for one in founded},
        {one.name: laps[f"winners, {one.name}"] for one in founded},
    )


def _warm_up_laps(rounds: int) -> int:
    return min(max(rounds - 1, 1), _WINNERS_WARM_UP_LAPS_MAX)


class _GivingAway:
    """Gives away some of a city's open places in each lap; where it has none, those of new releases, one after another.

    Each claim gets its first choice, so nothing but winners is measured.
    """

    def __init__(self, stage: Stage, wrk: str, city: City) -> None:
        self._stage = stage
        self._wrk = wrk
        self._city = city

    async def lap(self) -> Lap:
        """Give away, and count in PostgreSQL what was given. Raises `CannotBenchError` where that does not fit."""
        city = self._city
        releases = [city.release] if city.open_each else await self._open_towns()
        requests = [request for release in releases for request in self._claims_on(release)]
        pool_ids = [pool_id for release in releases for pool_id in release.pool_ids[self._first_open :]]
        before = await self._held(pool_ids)
        spent_before = self._stage.spent(city.server)
        async with replay_file(requests) as replay:
            report = await run_wrk(
                self._wrk,
                city.server.address,
                replay,
                seconds=_WINNERS_SECONDS,
                connections=CONNECTIONS,
                once=True,
            )
        await asyncio.sleep(_SETTLING_SECONDS)
        # Before the counting, which costs PostgreSQL something too.
        spent = self._stage.spent(city.server) - spent_before
        won = await self._held(pool_ids) - before
        if report.lost or report.not_2xx or not report.answers <= won <= report.answers + CONNECTIONS:
            raise CannotBenchError(
                f"Of {len(requests)} claims that were each to get a place of {city.places}, {report.answers} were "
                f"answered, {report.not_2xx} of them with no success, {report.lost} lost, and {won} places are held."
            )
        if not city.open_each:
            await self._close(releases)
        return Lap(won / (report.duration_us / 1e6), spent.each(won))

    @property
    def _first_open(self) -> int:
        return self._city.booked_pools if self._city.open_each else 0

    def _claims_on(self, release: BenchRelease) -> list[bytes]:
        if self._city.open_each:
            share = _TOWNS_A_LAP * sum(TOWN_POOLS) // len(TOWN_POOLS)
            pools = [(pool_id, share) for pool_id in release.pool_ids[self._first_open :]]
        else:
            pools = list(zip(release.pool_ids, TOWN_POOLS, strict=True))
        return claims_of_strangers(self._stage.signer, release, wishes_that_come_true(pools))

    async def _open_towns(self) -> list[BenchRelease]:
        async with self._city.database() as database:
            releases = [await publish(database, TOWN_POOLS) for _ in range(_TOWNS_A_LAP)]
        for release in releases:
            await in_force(self._city, release)
        return releases

    async def _close(self, releases: Sequence[BenchRelease]) -> None:
        """Cancel releases that are used up: there are not to be more of them to sweep with each lap."""
        async with self._city.database() as database:
            await database.execute(
                "UPDATE release SET state = 'cancelled' WHERE id = ANY ($1)",
                [release.release_id for release in releases],
            )

    async def _held(self, pool_ids: Sequence[object]) -> int:
        async with self._city.database() as database:
            count: int = await database.fetchval(_COUNT, pool_ids)
        return count


def _grown(laps: Laps, large: _Founded, small: _Founded, *, row_id: str, what: str, note: str) -> Row:
    """Return the row that sets the cost of a claim behind many places against that behind few, round by round."""
    many, few = ([lap.cpu_us for lap in laps[one.name]] for one in (large, small))
    return Row(
        id=row_id,
        what=f"processor time of {what}, {large.name} and {large.city.accounts:,} accounts",
        unit="µs",
        value=Spread.of([spent.total for spent in many]),
        target=ratio_at_most(_GROWTH_MAX),
        reference=Spread.of([spent.total for spent in few]),
        reference_what=small.name,
        ratio=Spread.of([one.total / other.total for one, other in zip(many, few, strict=True)]),
        cpu_us=middle_of(many),
        reference_cpu_us=middle_of(few),
        note=note,
    )


def _of_refusals(large: _Founded, small: _Founded) -> str:
    many, few = (len(one.city.release.pool_ids) for one in (large, small))
    return (
        f"The large release has {many} pools and the small one {few}: claims of one tick have fewer of them in common. "
        "Left out: the first lap, and the look-ups during which Redis moves a hash that was just loaded to its larger "
        "table, at about twice the cost; the bench does them beforehand."
    )


def _memory_rows(large: _Founded) -> list[Row]:
    return [
        Row(
            id="P11",
            what="a worker at rest",
            unit="MB",
            value=Spread.of([large.worker_bytes / 1e6]),
            target=value_at_most(_WORKER_MB_MAX),
            note="Resident memory of a web worker that was started and has not been asked yet.",
        ),
        Row(
            id="P11b",
            what=f"Redis per place, {large.name}",
            unit="B",
            value=Spread.of([large.redis_bytes]),
            target=value_at_most(_PLACE_BYTES_MAX),
            note="Memory that Redis uses with the state of a release that is booked, less what it used without.",
        ),
    ]


def _rebuild_row(large: _Founded) -> Row:
    return Row(
        id="G1",
        what=f"rebuild of {large.name}",
        unit="s",
        value=Spread.of(large.rebuild_seconds),
        target=value_at_most(_REBUILD_SECONDS_MAX),
        cpu_us=large.rebuild_us,
        note="From the loss of the state to the first answer. Processor time is that of one place.",
    )


def _pictures(founded: Sequence[_Founded], refused: Laps, won: Laps) -> list[Picture]:
    sizes = [one.city.places for one in founded]
    return [
        _cost_picture("What a refusal costs, by places booked", sizes, [refused[one.name] for one in founded]),
        _cost_picture("What a winner costs, by places booked before", sizes, [won[one.name] for one in founded]),
        _picture("Memory in Redis, by places", "bytes a place", {"Redis": [one.redis_bytes for one in founded]}, sizes),
        _picture(
            "Making a release's state from PostgreSQL, by places",
            "seconds",
            {"rebuild": [Spread.of(one.rebuild_seconds).median for one in founded]},
            sizes,
        ),
    ]


def _cost_picture(title: str, sizes: Sequence[int], laps: Sequence[Sequence[Lap]]) -> Picture:
    spent = [middle_of([lap.cpu_us for lap in laps_of_one]) for laps_of_one in laps]
    curves = {
        "all": [one.total for one in spent],
        "server": [one.server for one in spent],
        "Redis": [one.redis for one in spent],
        "PostgreSQL": [one.postgres for one in spent],
    }
    return _picture(title, "µs of processor time", curves, sizes)


def _picture(title: str, y_label: str, curves: Mapping[str, Sequence[float]], sizes: Sequence[int]) -> Picture:
    return Picture(
        title=title,
        x_label="places",
        y_label=y_label,
        curves=tuple(
            Curve(name, tuple((float(size), value) for size, value in zip(sizes, values, strict=True)))
            for name, values in curves.items()
        ),
        log_x=True,
    )
