"""PostgreSQL with a synchronous standby: every "yes" is on both before it is spoken, so either may be lost."""

import asyncio
import time
from collections.abc import AsyncGenerator

import asyncpg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import text

from app.booking.gate.desk import Request
from app.booking.gate.passes import PassSigner
from app.core.db import create_engine
from app.core.settings import Settings
from tests.booking.gate.builders import Phone, Worker, held, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.waits import until
from tests.chaos.engines import Template
from tests.cluster.opening import PATIENCE, Opening
from tests.cluster.standby import Pair, standing_pair
from tests.conftest import make_settings
from tests.serving.servers import clocktower, environment_of

pytestmark = pytest.mark.anyio

# Promotion takes a moment, once in a while some seconds; whoever was writing notices by the broken connection.
_AWAY_SECONDS_MAX = 15.0


@pytest.fixture(scope="module")
def cluster_template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template.make(tmp_path_factory.mktemp("template"), lambda _sentence: None)


@pytest.fixture
async def pair(tmp_path_factory: pytest.TempPathFactory, cluster_template: Template) -> AsyncGenerator[Pair]:
    async with standing_pair(tmp_path_factory.mktemp("pair"), cluster_template) as pair:
        yield pair


@pytest.fixture
def database_url(pair: Pair) -> str:
    return pair.database_url


@pytest.fixture
def settings(pair: Pair) -> Settings:
    url = pair.primary.valkey.url
    return make_settings(pair.database_url, url, "http://127.0.0.1:9").model_copy(update=dict(PATIENCE))


async def test_a_standby_promoted_in_mid_opening_has_every_yes(
    db: "asyncpg.Connection[asyncpg.Record]",
    pair: Pair,
    settings: Settings,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    releases = [await make_release(db, capacities=(45,)) for _ in range(2)]
    engine = create_engine(settings)

    async def lose_the_primary() -> None:
        began_at = time.monotonic()
        await asyncio.to_thread(pair.primary.kill_postgres)
        await pair.promote()
        print(f"promoted after {time.monotonic() - began_at:.2f} s")  # noqa: T201

    opening = await Opening.played(open_worker, signer, releases, lose_the_primary, after_seconds=1.5)
    fresh = await asyncpg.connect(pair.database_url)
    try:
        for made in releases:
            assert opening.away_s(made) < _AWAY_SECONDS_MAX
            print(f"away for {opening.away_s(made):.2f} s")  # noqa: T201
        await opening.assert_kept(fresh, redis)
    finally:
        await fresh.close()
    # The rest of the service finds the new primary, too.
    async with engine.connect() as connection:
        assert not (await connection.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()
    await engine.dispose()


async def _until_confirmed(worker: Worker, claim: Request) -> None:
    async def confirmed() -> bool:
        return (await worker.ask(claim)).word == "confirmed"

    await until(confirmed)


async def test_while_the_standby_is_away_nobody_hears_yes_whatever_the_servers_default_says(
    db: "asyncpg.Connection[asyncpg.Record]", pair: Pair, open_worker: OpenWorker, signer: PassSigner
) -> None:
    made = await make_release(db, capacities=(3,))
    await pair.command("ALTER DATABASE clocktower SET synchronous_commit = 'local'")
    worker = await open_worker()
    # So that the state is there.
    await worker.gate.release(made.release_id)
    await asyncio.to_thread(pair.freeze_standby)
    claim = Phone.with_pass(signer, made).claim()
    for _ in range(2):
        said = await worker.ask(claim)
        assert (said.status, said.word) == (202, "pending")
    await asyncio.to_thread(pair.thaw_standby)
    await _until_confirmed(worker, claim)
    assert await held(db, made) == [(0, 1)]


async def test_an_operator_lets_the_primary_go_on_alone(
    db: "asyncpg.Connection[asyncpg.Record]", pair: Pair, open_worker: OpenWorker, signer: PassSigner
) -> None:
    made = await make_release(db, capacities=(3,))
    worker = await open_worker()
    await worker.gate.release(made.release_id)
    await asyncio.to_thread(pair.freeze_standby)
    claim = Phone.with_pass(signer, made).claim()
    assert (await worker.ask(claim)).status == 202
    # Settings are changed by no commit, so that this is not held up.
    await pair.wait_for_standby()
    await _until_confirmed(worker, claim)
    assert await held(db, made) == [(0, 1)]


async def test_the_doctor_sees_that_the_standby_takes_no_claims(pair: Pair, settings: Settings) -> None:
    at_the_standby = settings.model_copy(update={"database_url": SecretStr(pair.standby_url)})
    done = await asyncio.to_thread(clocktower, "doctor", env=environment_of(at_the_standby))
    said = " ".join(done.stdout.split())
    assert done.returncode == 1, said
    assert "WRONG PostgreSQL is a standby, where nothing can be written. → name the primary" in said
