"""The group commit: a claim that PostgreSQL refuses takes nobody with it, and its own fate is settled in writing."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from app.booking.gate.ledger import Ledger, Verdict
from app.booking.gate.passes import PassSigner
from app.core.ids import new_id
from app.core.settings import Settings
from app.core.tasks import Chores
from tests.booking.gate.agreement import assert_agrees
from tests.booking.gate.builders import Phone, Wish, Worker, commit, held, make_release, winner, words
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.locks import no_commit_of
from tests.booking.gate.waits import until
from tests.numbers import rises

pytestmark = pytest.mark.anyio

_LOCK_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('release:' || $1::uuid::text, 0))"
_GATE_WAITS = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
               AND application_name = 'clocktower-gate' AND wait_event_type = 'Lock')
"""


@asynccontextmanager
async def _refusing(db: "asyncpg.Connection[asyncpg.Record]", table: str, condition: str) -> AsyncGenerator[None]:
    """Let PostgreSQL refuse every new row of a table for which the condition does not hold."""
    await db.execute(f"ALTER TABLE {table} ADD CONSTRAINT ck_of_the_test CHECK ({condition}) NOT VALID")
    try:
        yield
    finally:
        await db.execute(f"ALTER TABLE {table} DROP CONSTRAINT ck_of_the_test")


async def test_a_claim_that_postgresql_refuses_holds_up_no_other_of_its_batch(
    db: "asyncpg.Connection[asyncpg.Record]",
    worker: Worker,
    signer: PassSigner,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = await make_release(db, capacities=(20,))
    phones = [Phone.with_pass(signer, made) for _ in range(20)]
    bad, bad_id = phones[7], new_id()
    requests = [phone.claim(claim_id=bad_id if phone is bad else None) for phone in phones]
    await worker.gate.release(made.release_id)
    async with _refusing(db, "booking", f"person_id <> '{bad.people[0]}'"):
        async with db.transaction():
            await db.execute(_LOCK_ALONE, made.release_id)
            asking = [asyncio.create_task(worker.ask(request)) for request in requests]

            async def gathered() -> bool:
                return bool(await db.fetchval(_GATE_WAITS))

            # One commit waits, and whoever is admitted meanwhile goes with the next.
            await until(gathered)
        said = await asyncio.gather(*asking)
        again = [await worker.ask(request) for request in requests]
    assert words(said) == {"confirmed": 19, "claim_void": 1}
    assert (said[7].status, said[7].word) == (409, "claim_void")
    # The same id, the same answer; and the others keep theirs.
    assert words(again) == {"confirmed": 19, "claim_void": 1}
    assert again[7].word == "claim_void"
    complaints = [record.getMessage() for record in caplog.records if "gate_claim_refused" in record.getMessage()]
    assert len(complaints) == 1
    assert str(bad_id) in complaints[0]
    assert "23514" in complaints[0]
    for personal in (bad.people[0], bad.account):
        assert str(personal) not in caplog.text
    # The place is there for the next, at once.
    newcomer = await worker.ask(Phone.with_pass(signer, made).claim())
    assert newcomer.word == "confirmed"
    assert len(await held(db, made)) == 20
    await assert_agrees(db, redis, made)


async def test_a_refused_claim_that_somebody_else_has_written_is_a_yes(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str, settings: Settings
) -> None:
    made = await make_release(db)
    account: UUID = uuid4()
    claim = winner(Wish(uuid4()), account=account)
    await commit(db, made.at_epoch(0), claim)
    async with (
        _refusing(db, "claim", f"state = 'void' OR account_id <> '{account}'"),
        asyncpg.create_pool(database_url, min_size=0, max_size=2) as database,
    ):
        ledger = Ledger(made.at_epoch(0), database, settings, Chores())
        assert await ledger.commit(claim) is Verdict.COMMITTED
    assert await held(db, made) == [(0, 1)]


async def test_a_refused_claim_whose_tombstone_is_refused_too_is_left_in_doubt(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str, settings: Settings
) -> None:
    made = await make_release(db)
    bad, good = (winner(Wish(uuid4(), 0, place_no), seq=place_no) for place_no in (1, 2))
    async with (
        _refusing(db, "claim", f"id <> '{bad.record.claim_id}'"),
        asyncpg.create_pool(database_url, min_size=0, max_size=2) as database,
    ):
        ledger = Ledger(made.at_epoch(0), database, settings, Chores())
        with rises("claims_in_doubt", by=1):
            verdicts = await asyncio.gather(ledger.commit(bad), ledger.commit(good))
    assert verdicts == [Verdict.UNKNOWN, Verdict.COMMITTED]
    assert await held(db, made) == [(0, 2)]


async def test_a_gate_that_closes_leaves_nobody_who_goes_on_writing(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str, open_worker: OpenWorker, signer: PassSigner
) -> None:
    made = await make_release(db)
    worker = await open_worker(commit_wait_ms=100, shutdown_grace_seconds=1)
    before = asyncio.all_tasks()
    await worker.gate.release(made.release_id)
    async with no_commit_of(database_url, made):
        assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "pending"
        await worker.gate.close()
        assert asyncio.all_tasks() <= before
