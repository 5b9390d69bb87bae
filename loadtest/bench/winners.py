"""How many places are given away in a second so that none is lost: on disk before the phone hears of it.

All parents want the same pool, as at an opening everybody does. What counts is what PostgreSQL holds when the load has
ended, read back over another connection; an answer that no row stands behind counts for nothing.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from loadtest.bench.duel import Lap, Side, compare, take_turns
from loadtest.bench.machine import CannotBenchError
from loadtest.bench.peers import CannotRunPeerError, Peer, Surroundings
from loadtest.bench.peers.pretix import PRETIX
from loadtest.bench.peers.row_lock import ROW_LOCK
from loadtest.bench.peers.skip_locked import SKIP_LOCKED
from loadtest.bench.results import Row, ratio_at_least
from loadtest.bench.stage import Server, Stage
from loadtest.bench.town import claim_requests, make_release
from loadtest.bench.wrk import replay_file, run_wrk

CONNECTIONS: Final = 128
# Twice as many as it has threads. More would wait in its queue until wrk gives them up, and be served after that.
_PRETIX_CONNECTIONS: Final = 16
# More than any of them gives away in a second, by far.
_OUR_PLACES_A_SECOND: Final = 15_000
# Each with its places a second, and with its connections.
_CONTESTANTS: Final[tuple[tuple[Peer, int, int], ...]] = (
    (ROW_LOCK, 6_000, CONNECTIONS),
    (SKIP_LOCKED, 6_000, CONNECTIONS),
    (PRETIX, 200, _PRETIX_CONNECTIONS),
)
PEERS: Final = tuple(peer for peer, _, _ in _CONTESTANTS)
# The slowest of them gives away ten in this time.
_REST_SECONDS: Final = 0.5
_RESTS_MAX: Final = 60
_COUNT: Final = """
SELECT count(*) FROM booking JOIN pool ON pool.id = booking.pool_id
WHERE pool.release_id = $1 AND booking.status = 'confirmed'
"""


class _Contest:
    """Laps of winners, each for parents of its own: nobody can be in two places at once."""

    def __init__(self, stage: Stage, wrk: str, *, seconds: float) -> None:
        self._stage = stage
        self._wrk = wrk
        self._seconds = seconds
        # Of an earlier bench on the same data, too.
        self._seeds = itertools.count(time.time_ns())

    async def our_lap(self, server: Server) -> Lap:
        """Give away the places of a release that nobody has claimed yet."""
        places = round(_OUR_PLACES_A_SECOND * self._seconds)
        async with self._stage.database() as database:
            release = await make_release(database, pools=1, places_each=places)
        await self._stage.epoch_in_force(server, release)
        claims = claim_requests(self._stage.signer, release, count=places, seed=next(self._seeds))

        async def held() -> int:
            async with self._stage.database() as database:
                count: int = await database.fetchval(_COUNT, release.release_id)
            return count

        return await self._lap(server, claims, held, CONNECTIONS)

    async def peer_lap(
        self, peer: Peer, server: Server, around: Surroundings, claims: "Claims", connections: int
    ) -> Lap:
        """Give away places of a peer's own, which has enough of them for every lap."""
        requests = peer.requests(claims(next(self._seeds)), around)
        return await self._lap(server, requests, lambda: peer.winners(around), connections)

    async def _lap(
        self, server: Server, requests: Sequence[bytes], held: Callable[[], Awaitable[int]], connections: int
    ) -> Lap:
        before = await _at_rest(held)
        spent_before = self._stage.spent(server)
        async with replay_file(requests) as replay:
            report = await run_wrk(
                self._wrk, server.address, replay, seconds=self._seconds, connections=connections, once=True
            )
        # Before the counting, which costs PostgreSQL something too.
        spent = self._stage.spent(server) - spent_before
        won = await held() - before
        # Those under way when the load ended may be in PostgreSQL without an answer, never the other way round. And a
        # connection whose last answer came too late to be counted may have asked once more.
        yes = report.answers - report.not_2xx
        if report.lost or report.not_2xx or not yes <= won <= yes + 2 * connections:
            raise CannotBenchError(
                f"{server.name} said {yes} times yes and {report.not_2xx} times no, lost {report.lost} requests, and "
                f"{won} places are held: they do not fit."
            )
        return Lap(won / (report.duration_us / 1e6), spent.each(won))


async def _at_rest(held: Callable[[], Awaitable[int]]) -> int:
    """Return how many places are held once none is still being given away by the lap before.

    Raises `CannotBenchError` where that takes too long.
    """
    count = await held()
    for _ in range(_RESTS_MAX):
        await asyncio.sleep(_REST_SECONDS)
        again = await held()
        if again == count:
            return count
        count = again
    raise CannotBenchError(f"Places were still given away {_RESTS_MAX * _REST_SECONDS:.0f} s after a lap of winners.")


# The claims of parents drawn from a seed.
Claims = Callable[[int], Sequence[bytes]]


async def winners(
    stage: Stage, wrk: str, *, rounds: int, seconds: float, with_skip_locked: bool, say: Callable[[str], None]
) -> list[Row]:
    """Return the rows P4 and P5, and `with_skip_locked` P4b. Raises `CannotBenchError`."""
    say("Winners: places given away for good, all of one pool")
    contest = _Contest(stage, wrk, seconds=seconds)
    # The first to come makes the tables.
    server = await stage.one_worker()
    contestants = [one for one in _CONTESTANTS if one[0] is not SKIP_LOCKED or with_skip_locked]
    others = await asyncio.gather(
        *(
            _peer_side(stage, contest, peer, connections, round(places_a_second * seconds), rounds)
            for peer, places_a_second, connections in contestants
        )
    )
    ours = Side("clocktower", "durable winners, one worker", lambda: contest.our_lap(server))
    peers = {side.name: side for side in others}
    laps = await take_turns([ours, *peers.values()], rounds=rounds, say=say)
    rows = [
        compare(laps, ours, peers[ROW_LOCK.name], row_id="P4", target=ratio_at_least(5)),
        compare(laps, ours, peers[PRETIX.name], row_id="P5", target=ratio_at_least(400)),
    ]
    if with_skip_locked:
        rows.append(compare(laps, ours, peers[SKIP_LOCKED.name], row_id="P4b", target=None))
    return rows


async def _peer_side(
    stage: Stage,
    contest: _Contest,
    peer: Peer,
    connections: int,
    parents: int,
    rounds: int,
) -> Side:
    async with stage.database() as database:
        release = await make_release(database, pools=1, places_each=1)
    around = stage.surroundings(peer, release, epoch=0, places=(rounds + 2) * parents)
    try:
        server = await stage.start_peer(peer, around)
    except CannotRunPeerError as error:
        raise CannotBenchError(str(error)) from error

    def claims(seed: int) -> Sequence[bytes]:
        return claim_requests(stage.signer, release, count=parents, seed=seed)

    return Side(peer.name, peer.what, lambda: contest.peer_lap(peer, server, around, claims, connections))
