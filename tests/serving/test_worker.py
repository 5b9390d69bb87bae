import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
import structlog
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.keys import meta_key
from app.booking.models import Pool, Release
from app.booking.releases.queries import releases_in_use
from app.core.clock import Clock
from app.core.db import transaction
from app.core.ids import new_id
from app.core.settings import Settings
from app.worker import HOUSEKEEPING_LOCK_KEY, open_worker

pytestmark = pytest.mark.anyio


async def add_old_idempotency_record(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO idempotency_record (account_id, key, request_hash, status, body, created_at) "
                "VALUES (:account_id, 'old', '', 200, '', now() - interval '8 days')"
            ),
            {"account_id": new_id()},
        )


async def records(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM idempotency_record"))).scalar_one())


async def add_release(engine: AsyncEngine, *, state: str, closes_days_ago: float, session_in_days: float) -> UUID:
    now = Clock().now()
    closes_at, starts_at = now - timedelta(days=closes_days_ago), now + timedelta(days=session_in_days)
    release = Release(
        id=new_id(),
        title="暑期课程",
        state=state,
        rules_version=None if state == "draft" else "v1",
        opens_at=closes_at - timedelta(days=1),
        closes_at=closes_at,
        person_limit=1,
        account_limit=1,
    )
    pool = Pool(
        release_id=release.id,
        ordinal=0,
        kind="session",
        title="剪纸",
        during=Range(starts_at, starts_at + timedelta(hours=1)),
    )
    async with transaction(engine) as db:
        db.add(release)
        # The pool points at it, and nothing else says in which order the two are written.
        await db.flush()
        db.add(pool)
    return release.id


async def test_expired_records_are_deleted_by_one_worker_of_the_fleet_at_a_time(
    settings: Settings, engine: AsyncEngine
) -> None:
    await add_old_idempotency_record(engine)
    async with engine.connect() as other, open_worker(settings) as worker:
        await other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": HOUSEKEEPING_LOCK_KEY})
        assert await worker.once(asyncio.Event())
        assert await records(engine) == 1
    async with open_worker(settings) as worker:
        assert await worker.once(asyncio.Event())
    assert await records(engine) == 0


async def test_releases_that_claims_can_still_change_are_swept_and_no_others(engine: AsyncEngine) -> None:
    wanted = {
        await add_release(engine, state="published", closes_days_ago=-1, session_in_days=5),
        await add_release(engine, state="published", closes_days_ago=0.5, session_in_days=-0.2),
        await add_release(engine, state="published", closes_days_ago=3, session_in_days=2),
    }
    unwanted = {
        await add_release(engine, state="draft", closes_days_ago=-1, session_in_days=5),
        await add_release(engine, state="published", closes_days_ago=3, session_in_days=-1),
    }
    async with engine.connect() as connection:
        found = set(await releases_in_use(connection, now=Clock().now(), after=None))
    assert wanted <= found
    assert not unwanted & found


async def test_a_sweep_builds_the_gate_of_a_release_before_it_opens(settings: Settings, engine: AsyncEngine) -> None:
    release_id = await add_release(engine, state="published", closes_days_ago=-3, session_in_days=5)
    async with open_worker(settings) as worker:
        assert await worker.once(asyncio.Event())
    async with engine.connect() as connection:
        epoch = await connection.execute(text("SELECT epoch FROM release WHERE id = :id"), {"id": release_id})
        assert epoch.scalar_one() == 1


async def test_while_an_engine_is_away_the_worker_waits_and_says_so_once(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": SecretStr("unix:///nowhere/valkey.sock")})
    with structlog.testing.capture_logs() as logs:
        async with open_worker(away) as worker:
            for _ in range(3):
                assert not await worker.once(asyncio.Event())
    assert [(event["event"], event["what"], event["variable"]) for event in logs] == [
        ("worker_trouble", "Redis", "CLOCKTOWER_REDIS_URL")
    ]
    # The line is gone: no place in our code has anything to do with it.
    assert "where" not in logs[0]


async def test_a_stop_ends_the_work_without_another_round(settings: Settings) -> None:
    stop = asyncio.Event()
    async with open_worker(settings) as worker, asyncio.timeout(60):
        work = asyncio.create_task(worker.work(stop))
        stop.set()
        await work


async def test_a_round_takes_the_state_of_a_release_that_is_over_out_of_redis(
    settings: Settings, engine: AsyncEngine, redis: Redis
) -> None:
    over = await add_release(engine, state="published", closes_days_ago=3, session_in_days=-1)
    in_use = await add_release(engine, state="published", closes_days_ago=3, session_in_days=2)
    async with open_worker(settings) as worker:
        for release_id in (over, in_use):
            await worker._gate.rebuild(release_id)
            built = ("HSET", meta_key(release_id), "built_ms", "0")
            await redis.execute_command(*built)  # pyright: ignore[reportUnknownMemberType] - untyped **options
        assert await worker.once(asyncio.Event())
    assert not await redis.exists(meta_key(over))
    assert await redis.exists(meta_key(in_use))
