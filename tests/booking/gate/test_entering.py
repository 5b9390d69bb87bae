"""Releases whose state is looked for or made, and ids that somebody made up, do not hold up the winners of others."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from app.booking.gate.desk import Request
from app.booking.gate.passes import PassSigner
from app.core.ids import new_id
from tests.booking.gate.builders import Phone, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.locks import no_rebuild_of, until_gates_wait

pytestmark = pytest.mark.anyio


def _look_at(release_id: UUID) -> Request:
    return Request("GET", f"/v1/releases/{release_id}/availability", {}, b"")


async def test_a_release_that_somebody_made_up_waits_for_no_lock(database_url: str, open_worker: OpenWorker) -> None:
    worker = await open_worker()
    made_up = new_id()
    async with no_rebuild_of(database_url, [made_up]):
        assert (await worker.ask(_look_at(made_up))).word == "not_found"


async def test_releases_that_are_being_rebuilt_leave_connections_to_the_winners_of_others(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str, open_worker: OpenWorker, signer: PassSigner
) -> None:
    worker = await open_worker()
    open_one = await make_release(db)
    await worker.gate.release(open_one.release_id)
    # As many as there are connections: without a limit they would hold them all.
    closed = [await make_release(db) for _ in range(worker.gate.settings.gate_connection_limit)]
    async with no_rebuild_of(database_url, [made.release_id for made in closed]):
        looking = [asyncio.create_task(worker.ask(_look_at(made.release_id))) for made in closed]
        await until_gates_wait(db, 2)
        said = await worker.ask(Phone.with_pass(signer, open_one).claim())
        assert (said.status, said.word) == (201, "confirmed")
        assert {answer.word for answer in await asyncio.gather(*looking)} == {"rebuilding"}


async def test_who_finds_too_many_at_the_entrance_is_sent_away_at_once(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str, open_worker: OpenWorker
) -> None:
    worker = await open_worker()
    closed = [(await make_release(db)).release_id for _ in range(2)]
    async with no_rebuild_of(database_url, closed):
        looking = [asyncio.create_task(worker.ask(_look_at(release_id))) for release_id in closed]
        await until_gates_wait(db, 2)
        # The entrance is taken, so these stand before it until their patience ends; and the line is full with them.
        standing = [asyncio.create_task(worker.ask(_look_at(new_id()))) for _ in range(98)]
        too_many = asyncio.create_task(worker.ask(_look_at(new_id())))
        done, _ = await asyncio.wait([too_many, *standing], return_when=asyncio.FIRST_COMPLETED)
        assert done == {too_many}
        assert (await too_many).word == "rebuilding"
        await asyncio.gather(*looking, *standing)


async def test_a_postgresql_that_answers_nobody_keeps_nobody_from_states_that_stand(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str, open_worker: OpenWorker
) -> None:
    before = await open_worker()
    releases = [(await make_release(db)).release_id for _ in range(8)]
    for release_id in releases:
        await before.gate.release(release_id)
    # It never looks by itself who answers.
    after = await open_worker(sweep_interval_ms=60_000)
    entered, *others = releases
    await after.gate.release(entered)
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE claim")
            # More than there are links to Redis.
            looking = [asyncio.create_task(after.desk.answer(_look_at(release_id))) for release_id in others]
            await until_gates_wait(db)
            async with asyncio.timeout(0.5):
                assert (await after.desk.answer(_look_at(entered))).status == 200
            # None of them waits as long as for a rebuild: what stands is used.
            assert {answer.status for answer in await asyncio.gather(*looking)} == {200}
    finally:
        await connection.close()


async def test_a_room_is_not_left_for_a_postgresql_that_it_was_opened_with(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker
) -> None:
    release_id = (await make_release(db)).release_id
    await (await open_worker()).gate.release(release_id)
    worker = await open_worker(sweep_interval_ms=20)
    await worker.gate.release(release_id)
    room = worker.gate.entered[release_id.bytes]
    await asyncio.sleep(0.3)
    assert worker.gate.entered[release_id.bytes] is room
