"""What reading costs with a million bookings in the tables: a parent's own claims, and the catalogue.

In a town and in a city the same is read: the few claims of a parent, a town's release that is yet to open. What differs
is only what stands beside it. The city's own release is a page of two hundred pools, and is told by itself.
"""

import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

import httpx2

from app.cli import surroundings
from app.core.auth import sign_access_token
from app.core.clock import Clock
from loadtest.bench.city import City, Say
from loadtest.bench.duel import Lap, Laps, Side, lap_of, middle_of, take_turns
from loadtest.bench.machine import CannotBenchError
from loadtest.bench.results import Row, Spread, Target, ratio_at_most
from loadtest.bench.stage import Spent, Stage
from loadtest.bench.town import TOWN_POOLS, publish
from loadtest.bench.wrk import LoadReport, replay_file, run_wrk

# Fewer than the connections to PostgreSQL through which the service reads: none waits for another.
CONNECTIONS: Final = 8
_READERS: Final = 2_000
_TOKEN_SECONDS: Final = 7_200
_OPENS_IN: Final = timedelta(days=1)
_GROWTH_MAX: Final = 1.5
_US_IN_MS: Final = 1_000
_PAGE_SECONDS_MAX: Final = 30.0

_CLAIMS: Final = "my claims"
_LIST: Final = "the list of upcoming releases"
_ONE: Final = "a release of 300 places"
# The page of a city's own release is read so often: not by wrk, which would leave half of them to the next lap.
_PAGES: Final = 5

# Of the accounts that hold claims, some from everywhere.
_SOME_HOLDERS: Final = """
SELECT account_id FROM claim WHERE release_id = $1 AND id IN (
    SELECT id FROM claim WHERE release_id = $1 ORDER BY md5(id::text) LIMIT $2
)
"""


class _Reader:
    """Reads one thing of a city in each lap, from PostgreSQL each time."""

    def __init__(self, stage: Stage, wrk: str, city: City, replay: Path, *, seconds: float) -> None:
        self.reports: list[LoadReport] = []
        self._stage = stage
        self._wrk = wrk
        self._city = city
        self._replay = replay
        self._seconds = seconds

    async def lap(self) -> Lap:
        """Read as often as can be. Raises `CannotBenchError` where anything was refused."""
        server = self._city.server
        lap, report = await lap_of(
            self._stage,
            server,
            lambda: run_wrk(self._wrk, server.address, self._replay, seconds=self._seconds, connections=CONNECTIONS),
        )
        if report.not_2xx or report.lost:
            raise CannotBenchError(f"Of {report.answers} answers {report.not_2xx} refused what was to be read.")
        self.reports.append(report)
        return lap

    @property
    def latency_ms(self) -> float:
        """Return what an answer took in the middle."""
        return Spread.of([report.p50_us for report in self.reports]).median / _US_IN_MS


async def reads(
    stage: Stage, wrk: str, *, small: City, large: City, rounds: int, seconds: float, say: Say
) -> list[Row]:
    """Return the rows G2 and G3. Raises `CannotBenchError`."""
    say("Growth: reading one's own claims, and the catalogue")
    readers: dict[str, _Reader] = {}
    async with AsyncExitStack() as stack:
        for city in (small, large):
            for what, requests in (await _requests(stage, city)).items():
                await _require_success(city, requests[0])
                replay = await stack.enter_async_context(replay_file(requests))
                readers[_name(what, city)] = _Reader(stage, wrk, city, replay, seconds=seconds)
        # Each has answered once by now, which is enough for a quick look.
        warm_up_laps = min(rounds - 1, 1)
        sides = [Side(name, name, reader.lap, warm_up_laps) for name, reader in readers.items()]
        laps = await take_turns(sides, rounds=rounds, say=say)
    target = ratio_at_most(_GROWTH_MAX)
    return [
        _row(laps, readers, _CLAIMS, small, large, row_id="G2", target=target),
        _row(laps, readers, _LIST, small, large, row_id="G3", target=target),
        _row(laps, readers, _ONE, small, large, row_id="G3b", target=target),
        await _page_row(stage, large),
    ]


async def _requests(stage: Stage, city: City) -> dict[str, list[bytes]]:
    """Return what is asked for each thing that is read in a city."""
    async with city.database() as database:
        holders = await database.fetch(_SOME_HOLDERS, city.release.release_id, _READERS)
        town = await publish(database, TOWN_POOLS)
        await database.execute("UPDATE release SET opens_at = now() + $2 WHERE id = $1", town.release_id, _OPENS_IN)
    key = stage.environment[surroundings.SECRETS[0]].encode()
    return {
        _CLAIMS: [_get("/v1/me/claims", bearer=_token(holder["account_id"], key)) for holder in holders],
        _LIST: [_get("/v1/releases?state=upcoming")],
        _ONE: [_get(f"/v1/releases/{town.release_id}")],
    }


def _token(account_id: UUID, key: bytes) -> str:
    return sign_access_token(account_id, key=key, now_ms=Clock().now_ms(), lifetime_seconds=_TOKEN_SECONDS)


def _get(path: str, *, bearer: str = "") -> bytes:
    authorization = f"Authorization: Bearer {bearer}\r\n" if bearer else ""
    return f"GET {path} HTTP/1.1\r\nHost: clocktower.test\r\n{authorization}\r\n".encode("ascii")


async def _require_success(city: City, request: bytes) -> None:
    """Send one request as the load will. Raises `CannotBenchError` where it does not get something to read."""
    line, *lines = request.decode("ascii").strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    async with httpx2.AsyncClient(base_url=city.server.address) as client:
        answer = await client.get(line.split(" ")[1], headers=headers)
    if not answer.is_success or answer.json().get("items") == []:
        raise CannotBenchError(f"{line} was answered {answer.status_code}: {answer.text[:300]}")


async def _page_row(stage: Stage, city: City) -> Row:
    """Return what the page of a city's own release costs, one after another."""
    spent: list[Spent] = []
    took_ms: list[float] = []
    path = f"/v1/releases/{city.release.release_id}"
    async with httpx2.AsyncClient(base_url=city.server.address, timeout=_PAGE_SECONDS_MAX) as client:
        # The first one is not counted: statements are prepared, and pages come into memory.
        for _ in range(_PAGES + 1):
            before, began_at = stage.spent(city.server), time.monotonic()
            answer = await client.get(path)
            took_ms.append((time.monotonic() - began_at) * 1e3)
            spent.append(stage.spent(city.server) - before)
            if not answer.is_success:
                raise CannotBenchError(f"{path} was answered {answer.status_code}: {answer.text[:300]}")
    return Row(
        id="G3c",
        what=f"reading the release of {city.places:,} places itself, {len(city.release.pool_ids)} pools",
        unit="µs",
        value=Spread.of([one.total for one in spent[1:]]),
        target=None,
        cpu_us=middle_of(spent[1:]),
        note=f"Processor time of a request, one at a time; {Spread.of(took_ms[1:]).median:.0f} ms each. A worker asks "
        "PostgreSQL for it once in a second at the most.",
    )


def _name(what: str, city: City) -> str:
    return f"{what}, {city.places:,} places"


def _row(
    laps: Laps,
    readers: dict[str, _Reader],
    what: str,
    small: City,
    large: City,
    *,
    row_id: str,
    target: Target | None,
) -> Row:
    many, few = ([lap.cpu_us for lap in laps[_name(what, city)]] for city in (large, small))
    slow, quick = (readers[_name(what, city)].latency_ms for city in (large, small))
    return Row(
        id=row_id,
        what=f"reading {what}, {large.places:,} bookings in the tables",
        unit="µs",
        value=Spread.of([spent.total for spent in many]),
        target=target,
        reference=Spread.of([spent.total for spent in few]),
        reference_what=f"{small.places:,} bookings",
        ratio=Spread.of([one.total / other.total for one, other in zip(many, few, strict=True)]),
        cpu_us=middle_of(many),
        reference_cpu_us=middle_of(few),
        note=f"Processor time of a request. Latency with {CONNECTIONS} at once: {slow:.1f} ms beside {quick:.1f} ms.",
    )
