"""How many parents hear "sold out" in a second, and how many hear what is left: ours beside servers of the field.

A release of 300 places in 14 pools is booked to the last place. Each claim is another parent's, with a pass of their
own; all of it is checked and judged by the script, as at an opening.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx2
import msgspec

from loadtest.bench.duel import Lap, Laps, Side, compare, lap_of, require_alike, take_turns
from loadtest.bench.machine import CannotBenchError
from loadtest.bench.peers import CannotRunPeerError, Peer
from loadtest.bench.peers.bare import BARE
from loadtest.bench.peers.fastify import FASTIFY
from loadtest.bench.peers.textbook import TEXTBOOK
from loadtest.bench.results import Row, ratio_at_least
from loadtest.bench.stage import Server, Stage
from loadtest.bench.town import BenchRelease, book_places, claim_requests, make_town_release, poll_requests
from loadtest.bench.wrk import replay_file, run_wrk

PEERS: Final = (BARE, FASTIFY, TEXTBOOK)
CONNECTIONS: Final = 128
# Phones keep a connection each: what they have in the server's memory no longer fits into a processor's caches.
CROWD: Final = 1_000
# More than a worker answers in a second. Were there fewer, each would ask several times in it, below their limit.
PARENTS: Final = 100_000
_SEED: Final = 1
_NODE_WARM_UP_LAPS: Final = 4


class _Problem(msgspec.Struct):
    code: str


class Refusals:
    """The sold-out release, everybody who answers for it, and the requests that are sent to all of them."""

    def __init__(self, stage: Stage, wrk: str, release: BenchRelease, *, seconds: float) -> None:
        self.stage = stage
        self.release = release
        self._wrk = wrk
        self._seconds = seconds

    async def side(
        self,
        name: str,
        what: str,
        server: Server,
        requests: Sequence[bytes],
        replay: Path,
        *,
        refuses: bool,
        connections: int = CONNECTIONS,
    ) -> Side:
        """Return a side whose answers are all of one kind: the one that the first request gets now."""
        bytes_each = await _length_of_answer(server, requests[0], refuses=refuses)

        async def run() -> Lap:
            lap, report = await lap_of(
                self.stage,
                server,
                lambda: run_wrk(self._wrk, server.address, replay, seconds=self._seconds, connections=connections),
            )
            require_alike(name, report, refusals=refuses, bytes_each=bytes_each)
            return lap

        return Side(name, what, run)


async def refusals(
    stage: Stage,
    wrk: str,
    *,
    rounds: int,
    seconds: float,
    parents: int,
    with_crowd: bool,
    say: Callable[[str], None],
) -> list[Row]:
    """Return the rows P1, P2, P3, P9 and P10, and `with_crowd` P1b. Raises `CannotBenchError`."""
    say("Refusals: making a sold-out release of 300 places, and the claims of its parents")
    ours, pair = await asyncio.gather(stage.one_worker(), stage.serve(workers=2))
    # In one transaction: no sweep is to make the release's state before it is booked.
    async with stage.database() as database, database.transaction():
        release = await make_town_release(database)
        await book_places(database, release, places=release.places, accounts=release.places)
    epoch = await stage.epoch_in_force(ours, release)
    await stage.epoch_in_force(pair, release)
    claims = claim_requests(stage.signer, release, count=parents, seed=_SEED)
    polls = poll_requests(release)
    contest = Refusals(stage, wrk, release, seconds=seconds)
    async with AsyncExitStack() as stack:
        replay = await stack.enter_async_context(replay_file(claims))
        polling = await stack.enter_async_context(replay_file(polls))
        refused = await contest.side("clocktower", "refusals, one worker", ours, claims, replay, refuses=True)
        polled = await contest.side(
            "clocktower polls", "availability polls, one worker", ours, polls, polling, refuses=False
        )
        crowded = await contest.side(
            f"clocktower, {CROWD}",
            f"the same to {CROWD:,} connections",
            ours,
            claims,
            replay,
            refuses=True,
            connections=CROWD,
        )
        by_two = await contest.side("clocktower ×2", "refusals, two workers", pair, claims, replay, refuses=True)
        uvicorn, *others = await asyncio.gather(*(_start(stage, peer, release, epoch) for peer in PEERS))
        bare = await contest.side(BARE.name, BARE.what, uvicorn, claims, replay, refuses=False)
        bare_crowded = await contest.side(
            f"bare, {CROWD}", BARE.what, uvicorn, claims, replay, refuses=False, connections=CROWD
        )
        bare_polls = await contest.side("bare polls", BARE.what, uvicorn, polls, polling, refuses=False)
        peers: dict[str, Side] = {}
        for peer, server in zip(PEERS[1:], others, strict=True):
            side = await contest.side(peer.name, peer.what, server, claims, replay, refuses=True)
            # Node compiles what runs often: after some 30,000 requests it takes a quarter of the time.
            peers[peer.name] = replace(side, warm_up_laps=_NODE_WARM_UP_LAPS) if peer is FASTIFY else side
        # Each beside what it is compared with. Who is polled has been warmed up by claims.
        polled, bare_polls = replace(polled, warm_up_laps=0), replace(bare_polls, warm_up_laps=0)
        crowds = [crowded, bare_crowded] if with_crowd else []
        sides = [refused, bare, *crowds, polled, bare_polls, by_two, *peers.values()]
        laps = await take_turns(sides, rounds=rounds, say=say)
    rows = [
        compare(laps, refused, bare, row_id="P1", target=ratio_at_least(1.0), note=_of_bare()),
        compare(laps, refused, peers[FASTIFY.name], row_id="P2", target=ratio_at_least(1.5)),
        compare(laps, refused, peers[TEXTBOOK.name], row_id="P3", target=ratio_at_least(8)),
        compare(laps, polled, bare_polls, row_id="P9", target=ratio_at_least(1.0)),
        compare(laps, by_two, refused, row_id="P10", target=None, note=_limits_two(laps, by_two, refused)),
    ]
    if with_crowd:
        rows.append(compare(laps, crowded, bare_crowded, row_id="P1b", target=None, note=_of_the_crowd()))
    return rows


def _of_bare() -> str:
    return "Both are sent the same claims; the bare server reads them and answers without looking."


def _of_the_crowd() -> str:
    return (
        "Letting the phones in is part of it: uvicorn takes one connection a turn of its loop, a worker of ours 32, "
        "and a lap begins without any."
    )


def _limits_two(laps: Laps, pair: Side, one: Side) -> str:
    busy = [sum((lap.cpu_us.server, lap.cpu_us.redis)) * lap.per_second / 1e6 for lap in laps[pair.name]]
    alone = [sum((lap.cpu_us.server, lap.cpu_us.redis)) * lap.per_second / 1e6 for lap in laps[one.name]]
    return (
        "Two workers, Valkey and the load share two cores: with one worker, server and Valkey were busy for "
        f"{max(alone):.2f} of 2 cores, with two for {max(busy):.2f}; the load has the rest."
    )


async def _start(stage: Stage, peer: Peer, release: BenchRelease, epoch: int) -> Server:
    try:
        return await stage.start_peer(peer, stage.surroundings(peer, release, epoch=epoch, places=0))
    except CannotRunPeerError as error:
        raise CannotBenchError(str(error)) from error


async def _length_of_answer(server: Server, request: bytes, *, refuses: bool) -> float:
    """Send one request as the load will, and return how long its answer is, head and body.

    Raises `CannotBenchError` unless it is the refusal, or the success, that is to be measured.
    """
    head, _, body = request.partition(b"\r\n\r\n")
    line, *lines = head.decode("ascii").split("\r\n")
    method, path, _ = line.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    async with httpx2.AsyncClient(base_url=server.address) as client:
        # httpx2 asks for other forms than wrk does unless it is told not to.
        for name in ("accept", "accept-encoding", "connection", "user-agent"):
            del client.headers[name]
        answer = await client.request(method, path, headers=headers, content=body)
    says_sold_out = not answer.is_success and msgspec.json.decode(answer.content, type=_Problem).code == "sold_out"
    if says_sold_out != refuses or (not refuses and not answer.is_success):
        raise CannotBenchError(f"{server.name} answered {answer.status_code}: {answer.text[:300]}")
    head_bytes = len(f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}\r\n\r\n")
    return head_bytes + sum(len(name) + len(value) + 4 for name, value in answer.headers.raw) + len(answer.content)
