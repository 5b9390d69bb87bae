"""The gate on a primary that Sentinels replace: the new one is followed, the old one fenced, also where it lives on."""

import signal
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from app.booking.gate.keys import meta_key
from app.booking.gate.passes import PassSigner
from app.booking.gate.topology import Topology
from app.core.settings import Settings
from tests.booking.gate.builders import Phone, epoch_of, held, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.cluster.opening import PATIENCE, Opening
from tests.cluster.servers import PRIMARY_NAME, Sentinels, until_true
from tests.conftest import make_settings

pytestmark = pytest.mark.anyio

# Sentinels call a primary dead after half a second of silence and agree on a new one in about one more. Where their
# votes are split they vote again after twice their failover-timeout.
_AWAY_SECONDS_MAX = 20.0
_Trouble = Callable[[Sentinels], Coroutine[Any, Any, None]]


@pytest.fixture
def settings(database_url: str, sentinels: Sentinels) -> Settings:
    return make_settings(database_url, sentinels.url, "http://127.0.0.1:9").model_copy(update=dict(PATIENCE))


async def _killed(sentinels: Sentinels) -> None:
    sentinels.pair[0].kill()


async def _frozen(sentinels: Sentinels) -> None:
    """Freeze the primary until another has taken its place; then it lives on, and knows nothing of that."""
    old, new = sentinels.pair
    old.send(signal.SIGSTOP)
    await until_true(lambda: _is_primary(new))
    old.send(signal.SIGCONT)


async def _is_primary(server: Any) -> bool:
    return (await server.facts())["role"] == "master"


@pytest.mark.parametrize("trouble", [_killed, _frozen])
async def test_the_gate_follows_the_new_primary(
    db: "asyncpg.Connection[asyncpg.Record]",
    sentinels: Sentinels,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
    trouble: _Trouble,
) -> None:
    made = await make_release(db, capacities=(70,))
    opening = await Opening.played(open_worker, signer, [made], partial(trouble, sentinels), after_seconds=1.5)
    assert await epoch_of(db, made) > 1
    assert opening.away_s(made) < _AWAY_SECONDS_MAX
    print(f"away for {opening.away_s(made):.2f} s, epoch {await epoch_of(db, made)}")  # noqa: T201
    new = sentinels.pair[1]
    assert await _is_primary(new)
    assert await new.ask("HGET", meta_key(made.release_id), "epoch") == b"%d" % await epoch_of(db, made)
    await opening.assert_kept(db, redis)


async def test_a_worker_whose_lines_lead_to_an_old_primary_builds_nothing_there(
    db: "asyncpg.Connection[asyncpg.Record]", sentinels: Sentinels, open_worker: OpenWorker, signer: PassSigner
) -> None:
    made = await make_release(db, capacities=(9,))
    old, new = sentinels.pair
    # It never looks by itself, and nothing breaks its lines while nobody asks.
    sleepy, awake = await open_worker(sweep_interval_ms=60_000), await open_worker()
    for worker in (sleepy, awake):
        assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    old.send(signal.SIGSTOP)
    await until_true(lambda: _is_primary(new))
    claim = Phone.with_pass(signer, made).claim()

    async def served() -> bool:
        return (await awake.ask(claim)).word == "confirmed"

    await until_true(served)
    epoch = await epoch_of(db, made)
    assert epoch > 1
    old.send(signal.SIGCONT)
    # The old one takes it, PostgreSQL does not: the state in force is at the new one, and is to stay there.
    assert (await sleepy.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    assert await epoch_of(db, made) == epoch
    assert len(await held(db, made)) == 4


async def test_a_sentinel_that_knows_only_the_old_primary_is_not_believed(
    sentinels: Sentinels, settings: Settings, redis: Redis
) -> None:
    old, new = sentinels.pair
    # Sentinels tell each other by way of the servers that they watch: not by this one.
    await old.ask("ACL", "SETUSER", "default", "-publish")
    old.send(signal.SIGSTOP)
    await until_true(lambda: _is_primary(new))
    old.send(signal.SIGCONT)
    # It has slept through all of that, and finds its primary alive and well.
    late = sentinels.another(watching=old)
    topology = Topology(settings.model_copy(update={"redis_url": SecretStr(sentinels.url)}))

    async def found() -> bool:
        return {node.port for node in (await topology.look()).nodes} == {new.port}

    async def says_the_old_one() -> bool:
        return (await late.ask("SENTINEL", "MASTER", PRIMARY_NAME))[b"port"] == b"%d" % old.port

    await until_true(found)
    late.start()
    await until_true(says_the_old_one)
    for _ in range(3):
        assert await found()
    assert await says_the_old_one(), "the others have told it: this proves nothing"
    # The client of everything but the gate finds the new one as well.
    await until_true(redis.ping)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - untyped **kwargs
