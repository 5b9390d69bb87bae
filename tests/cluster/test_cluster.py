"""The gate on a cluster of three primaries: releases spread over them, and a node's end is the trouble of its own."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, cast

import asyncpg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.cluster import NodesManager
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.passes import PassSigner
from app.booking.gate.retirement import KEPT_MS
from app.core.clock import Clock
from app.core.ids import new_id
from app.core.redis import connect_redis
from app.core.settings import Settings
from app.core.web.limits import Limiter, Policy
from app.wechat.tokens import FetchedToken, TokenStore
from app.worker import open_worker as open_background_worker
from tests.booking.gate.agreement import assert_agrees, command, epoch_in_force, seen_in_redis
from tests.booking.gate.builders import MadeRelease, Phone, epoch_of, words
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.steps import admit, give_back
from tests.cluster.opening import PATIENCE, Opening
from tests.cluster.servers import Cluster, Valkey, spread, until_true
from tests.conftest import make_settings

pytestmark = pytest.mark.anyio

# Detecting takes a node time-out or two, the election one second: three to five. One that is lost is held again after
# four node time-outs.
_AWAY_SECONDS_MAX = 20.0


@pytest.fixture
def settings(database_url: str, cluster: Cluster) -> Settings:
    return make_settings(database_url, cluster.url, "http://127.0.0.1:9").model_copy(update=dict(PATIENCE))


def _all(shares: dict[Valkey, list[MadeRelease]]) -> Sequence[MadeRelease]:
    return [made for releases in shares.values() for made in releases]


async def test_releases_spread_over_the_nodes_and_everything_works_on_each(
    db: "asyncpg.Connection[asyncpg.Record]",
    engine: AsyncEngine,
    cluster: Cluster,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    shares = await spread(db, cluster, 2, capacity=2, waitlist_limit=1)
    workers = [await open_worker(), await open_worker(pending_deadline_ms=0)]
    for made in _all(shares):
        phones = [Phone.with_pass(signer, made) for _ in range(5)]
        ids = [new_id() for _ in phones]
        said = [
            await workers[n % 2].ask(phone.claim(claim_id=ids[n], waitlist=n == 2))
            for n, phone in enumerate(phones[:4])
        ]
        assert words(said) == {"confirmed": 2, "waitlisted": 1, "sold_out": 1}
        assert (await workers[1].ask(phones[0].claim(claim_id=ids[0]))).body == said[0].body
        # The place passes to the one who waits; of the next, that nobody waits for, a worker dies.
        await workers[0].gate.settle(made.release_id, await give_back(engine, phones[0], ids[0]))
        assert (await workers[1].ask(phones[2].claim(claim_id=ids[2], waitlist=True))).word == "confirmed"
        await workers[0].gate.settle(made.release_id, await give_back(engine, phones[1], ids[1]))
        await admit(workers[1], phones[4].claim(claim_id=ids[4]))
        await workers[0].gate.sweep(made.release_id)
        late = Phone.with_pass(signer, made).claim()
        assert (await workers[0].ask(late)).word == "confirmed"
        seen = await workers[1].gate.availability(made.release_id)
        assert [view.counts.free for view in seen.pools] == [0]
        await assert_agrees(db, redis, made)
    for node, releases in shares.items():
        keys = cast("list[bytes]", await node.ask("KEYS", "*:meta"))
        assert sorted(keys) == sorted(b"ct:{%s}:meta" % made.release_id.hex.encode() for made in releases)
    # What is not about one release is asked of every primary.
    states = {release_id async for some in workers[0].gate.states() for release_id in some}
    assert states == {made.release_id for made in _all(shares)}
    for made in _all(shares):
        meta = f"ct:{{{made.release_id.hex}}}:meta"
        long_ago_ms = int((await workers[0].gate.availability(made.release_id)).as_of_ms - 2 * KEPT_MS)
        await command(redis, "HSET", meta, "closes_ms", long_ago_ms, "built_ms", long_ago_ms)
        await workers[0].gate.retire(made.release_id)
    for node in shares:
        assert await node.ask("KEYS", "ct:*") == []


async def test_a_primary_that_is_killed_in_mid_opening_costs_its_own_releases_a_moment(
    db: "asyncpg.Connection[asyncpg.Record]",
    cluster: Cluster,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    shares = await spread(db, cluster, 1, capacity=60)
    victim, theirs = next(iter(shares.items()))
    others = [made for made in _all(shares) if made not in theirs]

    async def kill() -> None:
        victim.kill()

    opening = await Opening.played(open_worker, signer, _all(shares), kill, after_seconds=1.5)
    for made in others:
        # Not one of them was sent away, and nothing was made anew.
        assert opening.statuses(made) <= {201, 202, 409}, await epoch_of(db, made)
        assert await epoch_of(db, made) == 1
    for made in theirs:
        assert 503 in opening.statuses(made), "the node was not missed: the test struck too late"
        assert opening.away_s(made) < _AWAY_SECONDS_MAX
        assert await epoch_of(db, made) > 1
        print(f"away for {opening.away_s(made):.2f} s; others at most {max(map(opening.slowest_s, others)):.2f} s")  # noqa: T201
    await opening.assert_kept(db, redis)


async def test_a_primary_that_is_frozen_is_replaced_and_comes_back_as_nobody(
    db: "asyncpg.Connection[asyncpg.Record]",
    cluster: Cluster,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    shares = await spread(db, cluster, 1, capacity=60)
    victim, theirs = next(iter(shares.items()))
    others = [made for made in _all(shares) if made not in theirs]

    async def freeze() -> None:
        victim.send(signal.SIGSTOP)
        await asyncio.sleep(5.0)
        victim.send(signal.SIGCONT)

    opening = await Opening.played(open_worker, signer, _all(shares), freeze, after_seconds=1.0)
    assert {status for made in others for status in opening.statuses(made)} <= {201, 202, 409}
    for made in theirs:
        assert opening.away_s(made) < _AWAY_SECONDS_MAX
        await until_true(partial(_is_held_by_another, cluster, made, victim))
        print(f"away for {opening.away_s(made):.2f} s")  # noqa: T201
    await opening.assert_kept(db, redis)


# Key by key, nobody can be judged meanwhile; at once, whoever asks the old node is judged at the new one.
@pytest.mark.parametrize("move_it", [Cluster.move, Cluster.move_at_once])
async def test_a_slot_that_moves_in_mid_opening_is_followed(
    db: "asyncpg.Connection[asyncpg.Record]",
    cluster: Cluster,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
    move_it: Callable[[Cluster, MadeRelease, Valkey], Coroutine[Any, Any, None]],
) -> None:
    shares = await spread(db, cluster, 1, capacity=30)
    (source, (moving,)), (target, _), *_ = shares.items()
    blow = partial(move_it, cluster, moving, target)
    opening = await Opening.played(open_worker, signer, _all(shares), blow, after_seconds=1.0)
    assert await cluster.holder_of(moving) is target
    for made in _all(shares):
        if made is not moving:
            assert opening.statuses(made) <= {201, 202, 409}
    # It was built on the old node; what came with the slot is not believed.
    assert await epoch_of(db, moving) > 1
    print(f"away for {opening.away_s(moving):.2f} s, heard {opening.statuses(moving)}")  # noqa: T201
    await opening.assert_kept(db, redis)
    # Given back, so that the next test has even shares.
    await cluster.move(moving, source)


async def test_a_shard_that_is_gone_for_good_keeps_nobody_from_sweeping_the_others(
    db: "asyncpg.Connection[asyncpg.Record]",
    cluster: Cluster,
    settings: Settings,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    shares = await spread(db, cluster, 1, capacity=1)
    # Releases are swept in the order of their ids.
    first = min(_all(shares), key=lambda made: made.release_id)
    lost = await cluster.holder_of(first)
    others = [made for made in _all(shares) if made is not first]
    dying = await open_worker(pending_deadline_ms=0)
    for made in _all(shares):
        await admit(dying, Phone.with_pass(signer, made).claim())
    for node in await cluster.shard_of(lost):
        node.kill()
    async with open_background_worker(settings) as worker:
        await worker.once(asyncio.Event())
    gate = (await open_worker()).gate
    states = {release_id async for some in gate.states() for release_id in some}
    for made in others:
        assert (await seen_in_redis(redis, made)).pending == set()
    # Nor from looking which of theirs are over.
    assert {made.release_id for made in others} <= states


async def test_what_else_needs_redis_goes_on_without_one_node(
    cluster: Cluster, settings: Settings, redis: Redis
) -> None:
    limiter = Limiter(redis)
    policy = Policy("account", 2)
    store = TokenStore(redis, app_id="wx1", lock_seconds=5)
    callers = [f"caller {n}" for n in range(30)]
    assert [(await _allowed(limiter, caller, policy)) for caller in callers] == [True] * 30
    owner = await store.lock()
    assert owner is not None
    assert await store.publish(owner, FetchedToken(SecretStr("token"), 100))
    stored = await store.read()
    assert stored is not None
    assert stored.value.get_secret_value() == "token"
    assert await store.may_force()
    assert not await store.may_force()
    lost = cluster.nodes[0]
    for node in await cluster.shard_of(lost):
        node.kill()
    # Two of three primaries are there: a load balancer is to go on, and the time is told, also to whoever comes anew.
    newcomer = connect_redis(settings)
    try:
        for client in (redis, newcomer):
            assert await client.ping()  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues] - untyped **kwargs
            await Clock().calibrate(client.time)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - as above
    finally:
        await newcomer.aclose()
    # Who is counted on a node that is there is counted still; the others are let through, as ever.
    gone_on: list[bool | None] = []
    for caller in callers:
        limiter = Limiter(redis)
        gone_on += [await _allowed(limiter, caller, policy) for _ in range(2)]
    assert set(gone_on) == {True, False, None}


async def test_the_first_command_of_a_client_goes_to_the_node_that_has_its_key(
    db: "asyncpg.Connection[asyncpg.Record]", cluster: Cluster, settings: Settings
) -> None:
    lost, *others = _all(await spread(db, cluster, 1, capacity=1))
    for node in await cluster.shard_of(await cluster.holder_of(lost)):
        node.kill()
    for made in others * 10:
        client = connect_redis(settings)
        try:
            assert await epoch_in_force(client, made) is None
        finally:
            await client.aclose()


async def test_a_client_whose_last_command_broke_leaves_no_connection(cluster: Cluster, settings: Settings) -> None:
    address = SecretStr(f"{cluster.url}?client_name=leaving")
    client = connect_redis(settings.model_copy(update={"redis_url": address}))

    async def connections() -> int:
        lists = [await node.ask("CLIENT", "LIST") for node in cluster.nodes if not node.is_down]
        return sum(some.count(b" name=leaving ") for some in lists)

    async def read_from_every_node() -> None:
        for number in range(30):
            await command(client, "GET", f"key {number}")

    async def has_none() -> bool:
        return await connections() == 0

    try:
        await read_from_every_node()
        for node in await cluster.shard_of(cluster.nodes[0]):
            node.kill()
        with pytest.raises(RedisConnectionError):
            await read_from_every_node()
        assert not await has_none()
    finally:
        await client.aclose()
    await until_true(has_none)


async def test_who_closes_a_client_does_not_get_between_who_looks_for_the_nodes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect_redis(settings)
    looking, may_go_on = asyncio.Event(), asyncio.Event()
    look = NodesManager.initialize

    async def look_slowly(manager: NodesManager, **options: Any) -> None:
        await look(manager, **options)
        looking.set()
        await may_go_on.wait()

    monkeypatch.setattr(NodesManager, "initialize", look_slowly)
    reading = asyncio.create_task(command(client, "GET", "key"))
    await looking.wait()
    closing = asyncio.create_task(client.aclose())
    # As long as closing takes where nothing holds it up.
    await asyncio.sleep(0.1)
    assert not closing.done()
    may_go_on.set()
    await asyncio.gather(reading, closing, return_exceptions=True)
    assert await command(client, "GET", "key") is None
    await client.aclose()


async def _is_held_by_another(cluster: Cluster, made: MadeRelease, node: Valkey) -> bool:
    return await cluster.holder_of(made) is not node


async def _allowed(limiter: Limiter, caller: str, policy: Policy) -> bool | None:
    verdict = await limiter.take(caller, policy)
    return verdict and verdict.allowed
