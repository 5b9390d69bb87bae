"""Whatever happens to Redis: nobody is booked twice, nothing that was said is lost, and epochs only grow."""

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import asyncpg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.booking.gate import rebuild
from app.booking.gate.keys import EpochKeys, meta_key
from app.booking.gate.link import ACTIVATE, Argument, Link, Links, Reply
from app.booking.gate.passes import PassSigner
from app.core.ids import new_id
from app.core.settings import Settings
from tests.booking.gate.agreement import assert_agrees, command, epoch_in_force
from tests.booking.gate.builders import (
    MadeRelease,
    Phone,
    Worker,
    epoch_of,
    held,
    make_release,
    words,
)
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.steps import ask_until_decided
from tests.booking.gate.waits import until
from tests.numbers import rises
from tests.relay import relaying

pytestmark = pytest.mark.anyio

_ONE_AT_A_TIME = "SELECT pg_advisory_lock(hashtextextended('rebuild:' || $1::uuid::text, 0))"
_LOCK_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('release:' || $1::uuid::text, 0))"


async def _somebody_waits(db: "asyncpg.Connection[asyncpg.Record]") -> bool:
    return bool(await db.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))


@pytest.mark.parametrize("flush", ["FLUSHALL", "SCRIPT FLUSH"])
async def test_an_emptied_redis_is_filled_again_and_everybody_keeps_their_place(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis, flush: str
) -> None:
    made = await make_release(db, capacities=(3, 3), waitlist_limit=5)
    requests = [Phone.with_pass(signer, made).claim(n % 2, waitlist=True) for n in range(10)]
    before = [await worker.ask(request) for request in requests]
    assert words(before) == {"confirmed": 6, "waitlisted": 4}
    await command(redis, *flush.split())
    after = [await worker.ask(request) for request in requests]
    for was, now in zip(before, after, strict=True):
        assert now.body == was.body
    assert await epoch_of(db, made) == (2 if flush == "FLUSHALL" else 1)
    assert len(await held(db, made)) == 6
    await assert_agrees(db, redis, made)


async def test_a_worker_that_still_believes_in_an_old_epoch_is_put_right(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(5,))
    one, other = await open_worker(), await open_worker()
    first = await one.ask(Phone.with_pass(signer, made).claim())
    await other.gate.rebuild(made.release_id)
    request = Phone.with_pass(signer, made).claim()
    second = await one.ask(request)
    assert {first.word, second.word} == {"confirmed"}
    assert first.place != second.place
    assert await db.fetchval("SELECT epoch FROM claim WHERE id = $1", second.body["claim"]) == 2
    await assert_agrees(db, redis, made)


async def test_the_keys_of_an_epoch_that_is_over_are_removed(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db)
    await worker.ask(Phone.with_pass(signer, made).claim())
    await worker.gate.rebuild(made.release_id)
    assert await command(redis, "EXISTS", *EpochKeys(made.release_id, 1).everything(1)) == 0
    assert await command(redis, "TTL", EpochKeys(made.release_id, 2).pools) == -1


async def test_a_promoted_replica_with_old_data_is_not_believed(
    db: "asyncpg.Connection[asyncpg.Record]",
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
    second_redis_url: str,
) -> None:
    made = await make_release(db, capacities=(2,))
    before = await open_worker()
    first = await before.ask(Phone.with_pass(signer, made).claim())
    async with Redis.from_url(second_redis_url) as replica:  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
        await _copy(made, redis, replica)
        # The copy is a claim behind.
        second = await before.ask(Phone.with_pass(signer, made).claim())
        after = await open_worker(redis_url=SecretStr(second_redis_url))
        said = await ask_until_decided(after, Phone.with_pass(signer, made))
        assert said.word == "sold_out"
        # In all that time the copy was never in force: epoch 1 there was judged by nobody.
        assert await epoch_in_force(replica, made) == 2
        await assert_agrees(db, replica, made)
    assert {first.word, second.word} == {"confirmed"}
    assert await held(db, made) == [(0, 1), (0, 2)]
    # The old server comes back with its own old state: a winner there is stale, and it is rebuilt too.
    said = await ask_until_decided(before, Phone.with_pass(signer, made))
    assert said.word == "sold_out"


async def test_a_line_that_leads_to_another_server_by_now_closes_a_fence(
    db: "asyncpg.Connection[asyncpg.Record]",
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
    redis_url: str,
    second_redis_url: str,
    tmp_path: Path,
) -> None:
    made = await make_release(db)
    socket_path = tmp_path / "valkey.sock"
    first_path, second_path = (Path(urlsplit(url).path) for url in (redis_url, second_redis_url))
    async with relaying(socket_path, first_path) as relay:
        worker = await open_worker(redis_url=SecretStr(f"unix://{socket_path}"))
        assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
        async with Redis.from_url(second_redis_url) as replica:  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
            await _copy(made, redis, replica)
            relay.target = second_path
            with rises("fences_closed", by=1, cause="other_server"):
                relay.cut()
                said = await ask_until_decided(worker, Phone.with_pass(signer, made))
            assert said.word == "confirmed"
            await assert_agrees(db, replica, made)
        await worker.gate.close()


async def test_a_promoted_replica_does_not_say_sold_out_of_a_place_that_was_given_back_since(
    db: "asyncpg.Connection[asyncpg.Record]",
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
    second_redis_url: str,
) -> None:
    # No constraint in PostgreSQL would ever find this out: only the identity of the server tells.
    made = await make_release(db, capacities=(1,))
    before = await open_worker()
    said = await before.ask(Phone.with_pass(signer, made).claim())
    await before.gate.rebuild(made.release_id)
    async with Redis.from_url(second_redis_url) as replica:  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
        await _copy(made, redis, replica)
        await db.execute("UPDATE booking SET status = 'cancelled' WHERE pool_id = $1", made.pools[0])
        await db.execute("UPDATE claim SET state = 'cancelled', revision = 2 WHERE id = $1", said.body["claim"])
        await before.gate.sweep(made.release_id)
        after = await open_worker(redis_url=SecretStr(second_redis_url))
        newcomer = await ask_until_decided(after, Phone.with_pass(signer, made))
        assert newcomer.word == "confirmed"
        await assert_agrees(db, replica, made)


async def _copy(made: MadeRelease, source: Redis, target: Redis) -> None:
    """Copy the state of a release, as replication does."""
    for key in await command(source, "KEYS", f"ct:{{{made.release_id.hex}}}:*"):
        await command(target, "RESTORE", key, 0, await command(source, "DUMP", key))


async def test_claims_during_rebuilds_fill_every_place_once(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(40, 40), waitlist_limit=50)
    workers = [await open_worker(), await open_worker()]
    epochs: list[int] = []

    async def rebuild() -> None:
        for n in range(6):
            await workers[n % 2].gate.rebuild(made.release_id)
            epochs.append(await epoch_of(db, made))

    *answers, _ = await asyncio.gather(
        *(ask_until_decided(workers[n % 2], Phone.with_pass(signer, made), n % 2) for n in range(200)),
        rebuild(),
    )
    told = words(said for said in answers if said is not None)
    assert told["confirmed"] == 80
    assert told["confirmed"] + told["full"] + told["sold_out"] == 200
    assert len(await held(db, made)) == 80
    assert all(later > earlier for earlier, later in pairwise(epochs))
    for worker in workers:
        await worker.gate.sweep(made.release_id)
    await assert_agrees(db, redis, made)


async def test_activation_refuses_to_go_backwards(
    db: "asyncpg.Connection[asyncpg.Record]",
    worker: Worker,
    signer: PassSigner,
    settings: Settings,
    redis: Redis,
) -> None:
    made = await make_release(db)
    await worker.ask(Phone.with_pass(signer, made).claim())
    await worker.gate.rebuild(made.release_id)
    links = Links(settings, 1)
    async with links.lend() as link:
        keys = [meta_key(made.release_id), EpochKeys(made.release_id, 2).pools]
        for epoch in (0, 1, 2):
            assert await link.run(ACTIVATE, keys, [link.identity, epoch, link.identity, "seq", 0]) == b"S"
        # Loaded on one server, to be put in force on another.
        assert await link.run(ACTIVATE, keys, [link.identity, 3, "another", "seq", 0]) == b"I"
        # Loaded in part.
        keys.append(EpochKeys(made.release_id, 3).claims)
        assert await link.run(ACTIVATE, keys, [link.identity, 3, link.identity, "seq", 0]) == b"C"
    await links.close()
    assert await epoch_in_force(redis, made) == 2
    await assert_agrees(db, redis, made)


async def test_a_rebuild_that_died_before_its_state_came_into_force_is_done_again(
    db: "asyncpg.Connection[asyncpg.Record]",
    database_url: str,
    worker: Worker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(1,))
    await worker.gate.release(made.release_id)
    dying = await asyncpg.connect(database_url)
    try:
        async with dying.transaction():
            await dying.execute(_LOCK_ALONE, made.release_id)
            asking = asyncio.create_task(ask_until_decided(worker, Phone.with_pass(signer, made)))

            async def between() -> bool:
                return bool(await command(redis, "ZCARD", EpochKeys(made.release_id, 1).pending))

            await until(between)
            await dying.execute("UPDATE release SET epoch = epoch + 1 WHERE id = $1", made.release_id)
    finally:
        await dying.close()
    # Admitted under epoch 1, too late to be written under it, judged anew.
    said = await asking
    assert said.word == "confirmed"
    assert await epoch_of(db, made) == 3
    assert await db.fetchval("SELECT epoch FROM claim WHERE id = $1", said.body["claim"]) == 3
    await assert_agrees(db, redis, made)


async def test_the_order_of_those_who_wait_survives_and_free_places_go_to_them_at_once(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(2,), waitlist_limit=5)
    phones = [Phone.with_pass(signer, made) for _ in range(6)]
    requests = [phone.claim(waitlist=True) for phone in phones]
    for request in requests:
        await worker.ask(request)
    await db.execute(
        "UPDATE booking SET status = 'cancelled' WHERE pool_id = $1 AND person_id = ANY ($2)",
        made.pools[0],
        [phones[0].people[0], phones[3].people[0]],
    )
    await db.execute("UPDATE claim SET state = 'cancelled' WHERE account_id = $1", phones[0].account)
    await command(redis, "FLUSHALL")
    said = [await worker.ask(request) for request in requests]
    assert [one.word for one in said] == [
        "cancelled",
        "confirmed",
        "confirmed",
        "cancelled",
        "waitlisted",
        "waitlisted",
    ]
    assert [one.body["bookings"][0]["position"] for one in said[4:]] == [1, 2]
    newcomer = await worker.ask(Phone.with_pass(signer, made).claim(waitlist=True))
    assert newcomer.body["bookings"][0]["position"] == 3
    await assert_agrees(db, redis, made)


async def test_a_claim_id_of_another_release_is_refused_and_closes_nothing(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made, other = await make_release(db, capacities=(1,)), await make_release(db, start_hours=(90,))
    claim_id = new_id()
    assert (await worker.ask(Phone.with_pass(signer, other).claim(claim_id=claim_id))).word == "confirmed"
    mistaken = Phone.with_pass(signer, made)
    for _ in range(3):
        said = await worker.ask(mistaken.claim(claim_id=claim_id))
        assert (said.status, said.word) == (422, "idempotency_mismatch")
    assert await epoch_of(db, made) == 1
    assert (await worker.ask(mistaken.claim())).word == "confirmed"
    await assert_agrees(db, redis, made)


async def test_two_workers_that_find_redis_empty_rebuild_once(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(20,))
    workers = [await open_worker() for _ in range(3)]
    answers = await asyncio.gather(
        *(ask_until_decided(workers[n % 3], Phone.with_pass(signer, made)) for n in range(20))
    )
    assert words(answers) == {"confirmed": 20}
    assert await epoch_of(db, made) == 1
    await assert_agrees(db, redis, made)


async def test_a_rebuild_that_takes_longer_than_a_lock_may_is_waited_for(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str, open_worker: OpenWorker, redis: Redis
) -> None:
    made = await make_release(db)
    worker = await open_worker(commit_timeout_ms=200)
    other = await asyncpg.connect(database_url)
    try:
        await other.execute(_ONE_AT_A_TIME, made.release_id)
        rebuilding = asyncio.create_task(worker.gate.rebuild(made.release_id))
        await until(partial(_somebody_waits, db))
        # Three times as long as this worker waits for any other lock: nothing but time tells that it goes on waiting.
        await asyncio.sleep(0.5)
        assert await _somebody_waits(db)
        assert not rebuilding.done()
    finally:
        await other.close()
    await rebuilding
    await assert_agrees(db, redis, made)


async def test_other_releases_do_not_notice_a_rebuild(
    db: "asyncpg.Connection[asyncpg.Record]",
    database_url: str,
    worker: Worker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made, other = await make_release(db), await make_release(db)
    await worker.gate.release(made.release_id)
    await worker.gate.release(other.release_id)
    blocker = await asyncpg.connect(database_url)
    try:
        async with blocker.transaction():
            await blocker.execute(_LOCK_ALONE.replace("lock(", "lock_shared("), made.release_id)
            rebuilding = asyncio.create_task(worker.gate.rebuild(made.release_id))

            await until(partial(_somebody_waits, db))
            said = await worker.ask(Phone.with_pass(signer, other).claim())
            assert said.word == "confirmed"
        await rebuilding
    finally:
        await blocker.close()
    await assert_agrees(db, redis, other)


async def test_a_rebuild_leaves_nothing_of_the_epoch_before(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(2, 2), waitlist_limit=2)
    worker, by_hand = await open_worker(), await open_worker()
    for n in range(6):
        await worker.ask(Phone.with_pass(signer, made).claim(n % 2, waitlist=True))

    # From a process that has never met the release, as by hand.
    await by_hand.gate.rebuild(made.release_id)

    epoch = await epoch_of(db, made)
    found = cast("list[bytes]", await command(redis, "KEYS", f"ct:{{{made.release_id.hex}}}:*"))
    keys = {key.decode() for key in found}
    assert keys
    assert keys <= {meta_key(made.release_id), *EpochKeys(made.release_id, epoch).everything(len(made.pools))}


async def test_a_postgresql_that_was_restored_behind_the_gate_goes_on_past_the_gates_epoch(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(3,))
    for _ in range(4):
        await worker.gate.rebuild(made.release_id)
    await db.execute("UPDATE release SET epoch = 1 WHERE id = $1", made.release_id)
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    assert await epoch_of(db, made) == 5
    await assert_agrees(db, redis, made)


async def test_a_state_that_is_written_in_many_chunks_is_whole(
    db: "asyncpg.Connection[asyncpg.Record]",
    worker: Worker,
    signer: PassSigner,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = await make_release(db, capacities=(7, 7, 7), waitlist_limit=9)
    for n in range(6):
        phone = Phone.with_pass(signer, made, people=3 if n < 2 else 1)
        # Claims of several people, and people with several claims: their parts may fall into different chunks.
        for ordinal in range(3):
            await worker.ask(phone.claim(ordinal, together=False, waitlist=True))
    await db.execute(
        "UPDATE booking SET status = 'cancelled' WHERE pool_id = $1 AND place_no = 2 AND status = 'confirmed'",
        made.pools[0],
    )
    monkeypatch.setattr(rebuild, "_CHUNK", 1)
    for _ in range(2):
        await worker.gate.rebuild(made.release_id)
        await assert_agrees(db, redis, made)


async def test_a_redis_that_fails_in_the_middle_of_a_rebuild_leaves_the_way_free_for_the_next(
    db: "asyncpg.Connection[asyncpg.Record]",
    worker: Worker,
    signer: PassSigner,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = await make_release(db, capacities=(9,))
    for _ in range(9):
        await worker.ask(Phone.with_pass(signer, made).claim())
    monkeypatch.setattr(rebuild, "_CHUNK", 1)
    commands = Link.commands
    sent: list[int] = []

    async def failing(link: Link, given: Sequence[Sequence[Argument]]) -> list[Reply]:
        sent.append(len(given))
        if given[0][0] == "HSET" and len(sent) > 6:
            raise RedisConnectionError
        return await commands(link, given)

    monkeypatch.setattr(Link, "commands", failing)
    with pytest.raises(RedisConnectionError), rises("rebuilds_failed", by=1):
        await worker.gate.rebuild(made.release_id)
    monkeypatch.setattr(Link, "commands", commands)
    # The lock, the connection and the link are free again, and nothing that was half loaded is in force.
    said = await ask_until_decided(worker, Phone.with_pass(signer, made))
    assert said.word == "sold_out"
    await assert_agrees(db, redis, made)
