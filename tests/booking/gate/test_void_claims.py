"""Settling doubts by insert: the first writer of a claim id decides, and an insert waits for whoever is writing."""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.core.ids import new_id
from tests.booking.gate.builders import MadeRelease, Wish, commit, held, make_release, winner
from tests.booking.gate.waits import until_blocked

pytestmark = pytest.mark.anyio


async def _void(
    db: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease, *claim_ids: UUID, epoch: int = 0
) -> dict[UUID, str]:
    rows = await db.fetch("SELECT * FROM void_claims_v1($1, $2, $3)", made.release_id, epoch, list(claim_ids))
    return {row["claim_id"]: row["outcome"] for row in rows}


async def test_a_claim_that_nobody_wrote_is_void_from_now_on(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    claim = winner(Wish(uuid4()))
    assert await _void(db, made, claim.record.claim_id) == {claim.record.claim_id: "void"}
    assert await _void(db, made, claim.record.claim_id) == {claim.record.claim_id: "void"}
    assert await commit(db, made.at_epoch(0), claim) == {claim.record.claim_id: "void"}
    assert await held(db, made) == []


async def test_a_claim_that_is_booked_stays_booked(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    claim, orphan = winner(Wish(uuid4())), new_id()
    await commit(db, made.at_epoch(0), claim)
    outcomes = await _void(db, made, claim.record.claim_id, orphan)
    assert outcomes == {claim.record.claim_id: "known", orphan: "void"}
    assert await held(db, made) == [(0, 1)]


async def test_after_a_rebuild_nothing_of_the_old_epoch_is_touched(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    await db.execute("UPDATE release SET epoch = 1 WHERE id = $1", made.release_id)
    claim_id = new_id()
    assert await _void(db, made, claim_id, epoch=0) == {claim_id: "stale"}
    assert await db.fetchval("SELECT count(*) FROM claim WHERE id = $1", claim_id) == 0


async def test_a_claim_id_of_another_release_is_void_here_and_untouched_there(
    db: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    made, other = await make_release(db), await make_release(db)
    claim = winner(Wish(uuid4()))
    await commit(db, other.at_epoch(0), claim)
    assert await _void(db, made, claim.record.claim_id) == {claim.record.claim_id: "void"}
    assert await held(db, other) == [(0, 1)]


@pytest.mark.parametrize(("ends_in", "told"), [("commit", "known"), ("rollback", "void")])
async def test_it_waits_for_the_transaction_that_is_writing_the_same_id(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str, ends_in: str, told: str
) -> None:
    made = await make_release(db)
    claim = winner(Wish(uuid4()))
    writer, sweeper = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    try:
        writing = writer.transaction()
        await writing.start()
        assert await commit(writer, made.at_epoch(0), claim) == {claim.record.claim_id: "in"}
        settling = asyncio.create_task(_void(sweeper, made, claim.record.claim_id))
        await until_blocked(db, sweeper)
        # A SELECT would have said "not there" by now, and the place would have gone to somebody else.
        assert not settling.done()
        await (writing.commit() if ends_in == "commit" else writing.rollback())
        assert await settling == {claim.record.claim_id: told}
    finally:
        await writer.close()
        await sweeper.close()
    assert await held(db, made) == ([(0, 1)] if ends_in == "commit" else [])


async def test_a_commit_waits_for_the_sweep_that_is_writing_the_same_id(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    made = await make_release(db)
    claim = winner(Wish(uuid4()))
    sweeper, writer = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    try:
        settling = sweeper.transaction()
        await settling.start()
        assert await _void(sweeper, made, claim.record.claim_id) == {claim.record.claim_id: "void"}
        committing = asyncio.create_task(commit(writer, made.at_epoch(0), claim))
        await until_blocked(db, writer)
        await settling.commit()
        assert await committing == {claim.record.claim_id: "void"}
    finally:
        await sweeper.close()
        await writer.close()
    assert await held(db, made) == []


async def test_a_rebuild_waits_for_a_commit_and_a_commit_for_a_rebuild(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    made = await make_release(db)
    first, second = winner(Wish(uuid4(), 0, 1), seq=1), winner(Wish(uuid4(), 0, 2), seq=2)
    writer, rebuilder = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    lock = "SELECT pg_advisory_xact_lock(hashtextextended('release:' || $1::uuid::text, 0))"
    try:
        writing = writer.transaction()
        await writing.start()
        await commit(writer, made.at_epoch(0), first)
        rebuilding = rebuilder.transaction()
        await rebuilding.start()
        locking = asyncio.create_task(rebuilder.execute(lock, made.release_id))
        await until_blocked(db, rebuilder)
        await writing.commit()
        await locking
        await rebuilder.execute("UPDATE release SET epoch = epoch + 1 WHERE id = $1", made.release_id)
        committing = asyncio.create_task(commit(writer, made.at_epoch(0), second))
        await until_blocked(db, writer)
        await rebuilding.commit()
        # It began before the rebuild was done, and still sees what the rebuild wrote.
        assert await committing == {second.record.claim_id: "stale"}
    finally:
        await writer.close()
        await rebuilder.close()
    assert await held(db, made) == [(0, 1)]
