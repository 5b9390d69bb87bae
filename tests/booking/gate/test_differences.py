"""On what Redis and PostgreSQL disagree is named precisely and mended by as little as it takes; nothing else is."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.differences import Comparison, Mend, differences_of
from app.booking.gate.keys import EpochKeys, meta_key
from app.booking.gate.link import Links
from app.booking.gate.passes import PassSigner
from app.booking.gate.records import PARKED, Entry, PoolCounts, Status
from app.booking.gate.sides import read_database_side, read_gate_side
from app.cli.reconcile import mend
from app.core.ids import new_id
from tests.booking.gate.agreement import assert_agrees, command, seen_in_postgresql, seen_in_redis
from tests.booking.gate.builders import MadeRelease, Phone, Wish, Worker, epoch_of, held, make_release, winner
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.steps import admit, give_back

pytestmark = pytest.mark.anyio

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
# So that a difference has stayed for long enough after half a second.
QUICK = {"sweep_interval_ms": 50}
AT_ONCE = {**QUICK, "pending_deadline_ms": 0}
CAPACITY = 3


@dataclass(frozen=True, slots=True)
class Town:
    """A release with two holders in its first pool, a second pool that is full, and one who waits there."""

    made: MadeRelease
    worker: Worker
    holders: tuple[Phone, Phone]
    claims: tuple[UUID, UUID]
    waiting: UUID
    db: Database
    redis: Redis

    @property
    def keys(self) -> EpochKeys:
        return EpochKeys(self.made.release_id, 1)

    async def place_of(self, number: int) -> int:
        place: int = await self.db.fetchval("SELECT place_no FROM booking WHERE claim_id = $1", self.claims[number])
        return place

    async def compared(self) -> Comparison:
        comparison = await self.worker.gate.compare(self.made.release_id)
        assert comparison is not None
        return comparison


@pytest.fixture
async def town(db: Database, open_worker: OpenWorker, signer: PassSigner, redis: Redis) -> Town:
    made = await make_release(db, capacities=(CAPACITY, 1), waitlist_limit=3)
    worker = await open_worker(**QUICK)
    holders = Phone.with_pass(signer, made), Phone.with_pass(signer, made)
    claims = new_id(), new_id()
    for phone, claim_id in zip(holders, claims, strict=True):
        assert (await worker.ask(phone.claim(claim_id=claim_id))).word == "confirmed"
    assert (await worker.ask(Phone.with_pass(signer, made).claim(1))).word == "confirmed"
    waiting = new_id()
    said = await worker.ask(Phone.with_pass(signer, made).claim(1, claim_id=waiting, waitlist=True))
    assert said.word == "waitlisted"
    await assert_agrees(db, redis, made)
    return Town(made, worker, holders, claims, waiting, db, redis)


async def test_a_release_at_rest_agrees_and_its_epoch_stays(town: Town) -> None:
    comparison = await town.compared()
    assert comparison.differences == ()
    assert (comparison.epoch, comparison.gate_epoch) == (1, 1)
    first, second = comparison.pools
    assert (first.places, first.held, first.gate_held, first.gate_free, first.waiting) == (3, 2, 2, 1, 0)
    assert (second.held, second.gate_held, second.waiting, second.gate_waiting) == (1, 1, 1, 1)
    assert await epoch_of(town.db, town.made) == 1


async def test_a_release_that_nobody_has_asked_for_agrees_and_gets_no_state(
    db: Database, open_worker: OpenWorker, redis: Redis
) -> None:
    made = await make_release(db)
    comparison = await (await open_worker(**QUICK)).gate.compare(made.release_id)
    assert comparison is not None
    assert (comparison.agrees, comparison.gate_epoch, comparison.pools[0].gate_free) == (True, None, None)
    assert await command(redis, "EXISTS", meta_key(made.release_id)) == 0
    assert await epoch_of(db, made) == 0


async def test_what_is_not_published_cannot_be_compared(worker: Worker) -> None:
    assert await worker.gate.compare(uuid4()) is None


# Each damage: what is done, and which differences are to be named; of a claim or place, with its name.


async def _a_held_place_set_free(town: Town) -> set[str]:
    place = await town.place_of(0)
    await command(town.redis, "SETBIT", town.keys.free_map(0), place, 1)
    return {f"place {place} is free in the gate, and claim {town.claims[0]} holds it", "counts 1 free places"}


async def _a_free_place_lost(town: Town) -> set[str]:
    (place,) = (await seen_in_redis(town.redis, town.made)).state.free[0]
    await command(town.redis, "SETBIT", town.keys.free_map(0), place, 0)
    return {f"place {place} is not free in the gate, and nobody holds it", "counts 1 free places"}


async def _a_place_that_is_kept_for_walk_ins(town: Town) -> set[str]:
    """Count and map agree, and with the holders they come to as many places as there are: one is another's."""
    (free,) = (await seen_in_redis(town.redis, town.made)).state.free[0]
    walk_in = CAPACITY + 1
    await town.db.execute(
        "INSERT INTO place (pool_id, place_no, lane) VALUES ($1, $2, 'walk_in')", town.made.pools[0], walk_in
    )
    await command(town.redis, "SETBIT", town.keys.free_map(0), free, 0)
    await command(town.redis, "SETBIT", town.keys.free_map(0), walk_in, 1)
    return {
        f"place {free} is not free in the gate, and nobody holds it",
        f"place {walk_in} is free in the gate, and is none of those that it gives out",
    }


async def _a_lost_claim(town: Town) -> set[str]:
    await command(town.redis, "HDEL", town.keys.claims, town.claims[0].bytes)
    return {f"Claim {town.claims[0]}: PostgreSQL holds it (confirmed, place {await town.place_of(0)} in “pool”"}


async def _a_lost_person(town: Town) -> set[str]:
    person = town.holders[0].people[0]
    await command(town.redis, "HDEL", town.keys.people, person.bytes)
    return {f"Person {person}: the gate has 0 bookings of theirs, and there should be 1"}


async def _a_wrong_account(town: Town) -> set[str]:
    await command(town.redis, "HINCRBY", town.keys.accounts, town.holders[0].account.bytes, 4)
    return {f"Account {town.holders[0].account}: the gate counts 5 bookings, and there should be 1"}


async def _an_extra_claim(town: Town) -> set[str]:
    record = winner(Wish(uuid4(), place_no=CAPACITY), seq=9).record
    await command(town.redis, "HSET", town.keys.claims, record.claim_id.bytes, record.pack())
    return {f"Claim {record.claim_id}: the gate counts it as booked (confirmed, place {CAPACITY} in “pool”"}


async def _a_changed_claim(town: Town) -> set[str]:
    record = winner(Wish(town.holders[0].people[0], place_no=CAPACITY), claim_id=town.claims[0]).record
    await command(town.redis, "HSET", town.keys.claims, town.claims[0].bytes, record.pack())
    return {f"Claim {town.claims[0]}: the gate has it as confirmed, place {CAPACITY}"}


async def _a_pending_claim_without_a_record(town: Town) -> set[str]:
    claim_id = new_id()
    await command(town.redis, "ZADD", town.keys.pending, 1, claim_id.bytes)
    return {f"Claim {claim_id}: it is pending in the gate, which has no record of it"}


async def _wrong_counts(town: Town) -> set[str]:
    wrong = PoolCounts(free=2, capacity=4, waiting=7, waitlist_limit=1, pending=5, hint_byte=0, is_open=False)
    await command(town.redis, "HSET", town.keys.pools, 0, wrong.pack())
    return {
        "the gate has 4 places, room for 1 to wait and the pool closed; PostgreSQL 3, 3 and open",
        "the gate counts 2 free places, and its map has 1",
        "the gate counts 7 who wait, and there should be 0",
        "the gate counts 5 places on their way, and they are 0",
    }


async def _lost_counts(town: Town) -> set[str]:
    await command(town.redis, "HDEL", town.keys.pools, 0)
    return {"the gate has lost its counts or its map of free places"}


async def _other_hours(town: Town) -> set[str]:
    await command(town.redis, "HSET", meta_key(town.made.release_id), "opens_ms", 1)
    return {"The gate has other hours or limits than PostgreSQL"}


async def _another_server(town: Town) -> set[str]:
    await command(town.redis, "HSET", meta_key(town.made.release_id), "identity", "somebody/else")
    return {"was built on another server than the one that answers"}


async def _a_suspended_state(town: Town) -> set[str]:
    await command(town.redis, "HDEL", meta_key(town.made.release_id), "identity")
    return {"The gate's state is suspended"}


async def _another_epoch(town: Town) -> set[str]:
    await town.db.execute("UPDATE release SET epoch = 4 WHERE id = $1", town.made.release_id)
    return {"The gate is in epoch 1, and PostgreSQL in 4"}


async def _news_told_in_vain(town: Town) -> set[str]:
    # PostgreSQL believes that the gate has heard of the giving back.
    await town.db.execute("UPDATE booking SET status = 'cancelled' WHERE claim_id = $1", town.claims[0])
    await town.db.execute(
        "UPDATE claim SET state = 'cancelled', revision = 2, gate_revision = 2 WHERE id = $1", town.claims[0]
    )
    return {
        f"Claim {town.claims[0]}: the gate has it as confirmed",
        "is not free in the gate, and nobody holds it",
        f"Person {town.holders[0].people[0]}: the gate has 1 booking of theirs, and there should be 0",
        f"Account {town.holders[0].account}: the gate counts 1 booking, and there should be 0",
    }


async def _a_claim_that_postgresql_lost(town: Town) -> set[str]:
    # As after a restore from a back-up that is older than the claim.
    await town.db.execute("DELETE FROM booking WHERE claim_id = $1", town.claims[1])
    await town.db.execute("DELETE FROM claim WHERE id = $1", town.claims[1])
    return {
        f"Claim {town.claims[1]}: the gate counts it as booked",
        "is not free in the gate, and nobody holds it",
        f"Person {town.holders[1].people[0]}",
        f"Account {town.holders[1].account}",
    }


async def _a_place_of_which_somebody_is_to_hear(town: Town) -> set[str]:
    await command(town.redis, "HSET", town.keys.ahead, PARKED.pack(0, 1), 1)
    return {"the gate waits for 1 more to give place 1 back, and all have"}


async def _a_waiter_who_was_passed_over(town: Town) -> set[str]:
    # The place became free in both, and nobody handed it to the one who waits.
    await town.db.execute(
        "UPDATE booking SET status = 'cancelled' WHERE pool_id = $1 AND status = 'confirmed'", town.made.pools[1]
    )
    await town.db.execute(
        "UPDATE claim SET state = 'cancelled' WHERE id IN (SELECT claim_id FROM booking WHERE status = 'cancelled')"
    )
    row = await town.db.fetchrow(
        "SELECT claim.id, account_id, person_id, seq FROM booking JOIN claim ON claim.id = claim_id"
        " WHERE pool_id = $1 AND status = 'cancelled'",
        town.made.pools[1],
    )
    assert row is not None
    packed: bytes = await command(town.redis, "HGET", town.keys.claims, row["id"].bytes)
    record = winner(claim_id=row["id"], seq=row["seq"], account=row["account_id"]).record
    entry = Entry(row["person_id"].bytes, 1, 1, Status.CANCELLED)
    head = packed[: len(record.pack())]
    await command(town.redis, "HSET", town.keys.claims, row["id"].bytes, head + _packed_entry(entry))
    await command(town.redis, "HDEL", town.keys.people, row["person_id"].bytes)
    await command(town.redis, "HDEL", town.keys.accounts, row["account_id"].bytes)
    await command(town.redis, "SETBIT", town.keys.free_map(1), 1, 1)
    counts = PoolCounts(free=1, capacity=1, waiting=1, waitlist_limit=3, pending=0, hint_byte=0, is_open=True)
    await command(town.redis, "HSET", town.keys.pools, 1, counts.pack())
    return {"place 1 is free, and was not handed to those who wait (1)"}


def _packed_entry(entry: Entry) -> bytes:
    return (
        entry.person + entry.ordinal.to_bytes(2, "little") + entry.number.to_bytes(4, "little") + bytes([entry.status])
    )


CONTRADICTIONS: dict[str, Callable[[Town], Awaitable[set[str]]]] = {
    damage.__name__.removeprefix("_"): damage
    for damage in (
        _a_held_place_set_free,
        _a_free_place_lost,
        _a_place_that_is_kept_for_walk_ins,
        _a_lost_claim,
        _a_lost_person,
        _a_wrong_account,
        _an_extra_claim,
        _a_changed_claim,
        _a_pending_claim_without_a_record,
        _wrong_counts,
        _lost_counts,
        _other_hours,
        _another_server,
        _a_suspended_state,
        _another_epoch,
        _news_told_in_vain,
        _a_claim_that_postgresql_lost,
        _a_place_of_which_somebody_is_to_hear,
        _a_waiter_who_was_passed_over,
    )
}


def assert_named(comparison: Comparison, expected: set[str]) -> None:
    """Assert that there is one difference for each of these, and no other."""
    sentences = [difference.sentence for difference in comparison.differences]
    for part in expected:
        assert any(part in sentence for sentence in sentences), (part, sentences)
    others = [sentence for sentence in sentences if not any(part in sentence for part in expected)]
    assert others == []


@pytest.mark.parametrize("damage", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
async def test_a_contradiction_is_named_and_mended_by_a_rebuild(
    town: Town, damage: Callable[[Town], Awaitable[set[str]]]
) -> None:
    expected = await damage(town)
    before = await epoch_of(town.db, town.made)
    found = await town.compared()
    assert_named(found, expected)
    assert {difference.mend for difference in found.differences} == {Mend.REBUILD}
    # Looking has changed nothing, the epoch neither.
    assert await epoch_of(town.db, town.made) == before
    assert await mend(town.worker.gate, found) == ["made anew from PostgreSQL"]
    assert (await town.compared()).agrees
    assert await epoch_of(town.db, town.made) == before + 1
    await assert_agrees(town.db, town.redis, town.made)


async def _swept(town: Town, expected: set[str]) -> None:
    """Assert that these are named, and mended without another epoch."""
    found = await town.compared()
    assert_named(found, expected)
    assert {difference.mend for difference in found.differences} == {Mend.SWEEP}
    assert await mend(town.worker.gate, found) == ["swept"]
    assert (await town.compared()).agrees
    assert await epoch_of(town.db, town.made) == 1
    await assert_agrees(town.db, town.redis, town.made)


async def test_a_claim_whose_worker_died_is_named_and_released_by_a_sweep(
    town: Town, open_worker: OpenWorker, signer: PassSigner
) -> None:
    dead = await open_worker(**AT_ONCE)
    orphan = await admit(dead, Phone.with_pass(signer, town.made).claim())
    await _swept(town, {f"Claim {orphan.record.claim_id}: it was taken (confirmed, place {CAPACITY} in “pool”"})
    assert len(await held(town.db, town.made)) == 3


async def test_a_claim_that_is_on_its_way_is_no_difference(
    town: Town, open_worker: OpenWorker, signer: PassSigner
) -> None:
    await admit(await open_worker(**QUICK), Phone.with_pass(signer, town.made).claim())
    comparison = await town.compared()
    assert (comparison.differences, comparison.pools[0].gate_pending) == ((), 1)


async def test_news_that_nobody_told_is_named_and_told_by_a_sweep(town: Town, engine: AsyncEngine) -> None:
    await give_back(engine, town.holders[0], town.claims[0])
    await _swept(town, {f"Claim {town.claims[0]}: the gate has not heard of its latest change"})


async def test_a_place_kept_for_nobody_is_named_and_freed_by_a_sweep(
    town: Town, engine: AsyncEngine, open_worker: OpenWorker, signer: PassSigner
) -> None:
    holder, claim_id = Phone.with_pass(signer, town.made), new_id()
    assert (await town.worker.ask(holder.claim(claim_id=claim_id))).word == "confirmed"
    dead = await open_worker(**AT_ONCE)
    # The pool is full: this one waits, and dies between script and commit.
    await admit(dead, Phone.with_pass(signer, town.made).claim(waitlist=True))
    await town.worker.gate.settle(town.made.release_id, await give_back(engine, holder, claim_id))
    assert (await seen_in_redis(town.redis, town.made)).parked == {(0, CAPACITY)}
    found = await town.compared()
    # The waiter is still pending, so the place is on its way to them.
    assert {difference.name for difference in found.differences} == {"claim_overdue", "place_not_handed_over"}
    for _ in range(2):
        await mend(town.worker.gate, found)
    assert (await town.compared()).agrees
    await assert_agrees(town.db, town.redis, town.made)


async def test_a_rebuild_that_somebody_else_has_made_meanwhile_is_not_made_again(
    town: Town, open_worker: OpenWorker
) -> None:
    await command(town.redis, "HDEL", town.keys.claims, town.claims[0].bytes)
    found = await town.compared()
    other = await open_worker()
    await other.gate.rebuild(town.made.release_id)
    await mend(town.worker.gate, found)
    assert await epoch_of(town.db, town.made) == 2
    assert (await town.compared()).agrees


class Crowd:
    """Phones that claim, wait and give back without a pause, and a worker that sweeps meanwhile."""

    def __init__(self, made: MadeRelease, workers: list[Worker], signer: PassSigner, engine: AsyncEngine) -> None:
        self.booked: dict[UUID, Phone] = {}
        self.heard_yes: set[UUID] = set()
        self.is_over = False
        self._made = made
        self._workers = workers
        self._signer = signer
        self._engine = engine
        self._chance = random.Random(7)  # noqa: S311 - a sequence to be repeated

    async def claim_and_give_back(self) -> None:
        while not self.is_over:
            phone, claim_id, worker = (
                Phone.with_pass(self._signer, self._made),
                new_id(),
                self._chance.choice(self._workers),
            )
            waitlist = self._chance.random() < 0.5
            request = phone.claim(*self._chance.sample(range(3), 2), claim_id=claim_id, waitlist=waitlist)
            said = await worker.ask(request)
            while said.word in {"pending", "rebuilding", "gate_unreachable"}:
                said = await worker.ask(request)
            if said.word not in {"confirmed", "waitlisted"}:
                continue
            self.heard_yes.add(claim_id)
            await asyncio.sleep(self._chance.random() * 0.02)
            if self._chance.random() < 0.1:
                self.booked[claim_id] = phone
                if len(self.booked) <= 8:
                    continue
                # The last: the first keep theirs to the end.
                claim_id, phone = self.booked.popitem()
            await worker.gate.settle(self._made.release_id, await give_back(self._engine, phone, claim_id))

    async def sweep(self) -> None:
        while not self.is_over:
            await self._workers[0].gate.sweep(self._made.release_id)
            await asyncio.sleep(0.2)


async def test_while_claims_come_and_go_a_healthy_release_shows_no_difference_and_mending_loses_nothing(
    db: Database, engine: AsyncEngine, open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(6, 6, 4), waitlist_limit=4)
    busy = [await open_worker(sweep_interval_ms=200) for _ in range(2)]
    operator = await open_worker(sweep_interval_ms=200)
    crowd = Crowd(made, busy, signer, engine)

    async def compared() -> Comparison:
        comparison = await operator.gate.compare(made.release_id)
        assert comparison is not None
        return comparison

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(crowd.claim_and_give_back())
        tasks.create_task(crowd.sweep())
        try:
            compared_times = differed_at_once = 0
            # Single readings do differ: it is the watching that tells what is on its way from what is wrong.
            while compared_times < 20 or differed_at_once < 3:
                assert (await compared()).differences == ()
                differed_at_once += await _differs_at_once(operator, made)
                compared_times += 1
            assert await epoch_of(db, made) == 1
            # Something breaks in the middle of it, is found, and mended.
            lost = next(iter(crowd.booked))
            await command(redis, "HDEL", EpochKeys(made.release_id, 1).claims, lost.bytes)
            found = await compared()
            assert_named(found, {f"Claim {lost}: PostgreSQL holds it"})
            await mend(operator.gate, found)
            assert (await compared()).agrees
        finally:
            crowd.is_over = True
    for _ in range(3):
        await busy[1].gate.sweep(made.release_id)
    assert await epoch_of(db, made) == 2
    assert len(crowd.heard_yes) > 50
    assert crowd.heard_yes <= (await seen_in_postgresql(db, made)).claims.keys()
    await assert_agrees(db, redis, made)


async def _differs_at_once(worker: Worker, made: MadeRelease) -> bool:
    """Tell whether one reading of each side differs."""
    links = Links(worker.gate.settings, 1)
    try:
        async with links.lend() as link:
            gate = await read_gate_side(link, made.release_id)
    finally:
        await links.close()
    database = await read_database_side(worker.gate._database, made.release_id, gate, timeout_seconds=5)
    assert database is not None
    return any(True for _ in differences_of(gate, database))
