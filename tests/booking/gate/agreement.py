"""Whether Redis and PostgreSQL say the same of a release: every claim, person, account, count and bit."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import asyncpg
from redis.asyncio import Redis

from app.booking.gate.keys import BALLAST_FIELD, EpochKeys, meta_key
from app.booking.gate.records import BOOKED, PARKED, ClaimRecord, PoolCounts, Status
from tests.booking.gate.builders import MadeRelease
from tests.booking.gate.waits import until

LIVE = ("confirmed", "waitlisted")


@dataclass
class GateState:
    """What one of the two knows of a release. Positions on a waiting list are left out: they move by themselves."""

    claims: dict[UUID, list[tuple[UUID, int, int | None, str]]] = field(default_factory=dict)
    people: dict[UUID, set[tuple[int, int, UUID]]] = field(default_factory=dict)
    accounts: dict[UUID, int] = field(default_factory=dict)
    free: dict[int, set[int]] = field(default_factory=dict)
    waiting: dict[int, int] = field(default_factory=dict)
    held_twice: set[tuple[int, int]] = field(default_factory=set)


@dataclass
class Seen:
    """The state in Redis, and what of it has no counterpart in PostgreSQL."""

    state: GateState
    counts: dict[int, PoolCounts]
    pending: set[UUID]
    parked: set[tuple[int, int]]


async def command(redis: Redis, *words: Any) -> Any:
    """Send one command; redis-py leaves its methods half typed."""
    return cast("Any", await redis.execute_command(*words))  # pyright: ignore[reportUnknownMemberType] - untyped **options


async def epoch_in_force(redis: Redis, made: MadeRelease) -> int | None:
    """Return the epoch that Redis has in force, or None."""
    epoch = await command(redis, "HGET", meta_key(made.release_id), "epoch")
    return None if epoch is None else int(epoch)


def bits_in(packed: bytes) -> set[int]:
    """Return the numbers of the bits that are set, as Redis counts them."""
    return {8 * at + bit for at, byte in enumerate(packed) for bit in range(8) if byte & 0x80 >> bit}


async def seen_in_redis(redis: Redis, made: MadeRelease) -> Seen:
    """Read the whole state of the epoch in force."""
    epoch = await epoch_in_force(redis, made)
    assert epoch is not None, "no state in force"
    keys = EpochKeys(made.release_id, epoch)
    state = GateState()
    claims = cast("dict[bytes, bytes]", await command(redis, "HGETALL", keys.claims))
    for claim_id, packed in claims.items():
        record = ClaimRecord.unpack(UUID(bytes=claim_id), packed)
        state.claims[record.claim_id] = [
            (
                UUID(bytes=entry.person),
                entry.ordinal,
                None if entry.status is Status.WAITLISTED else entry.number,
                entry.status.word,
            )
            for entry in record.entries
        ]
    people = await _without_ballast(redis, keys.people)
    for person, packed in people.items():
        state.people[UUID(bytes=person)] = {
            (ordinal, place_no, UUID(bytes=claim)) for ordinal, place_no, claim in BOOKED.iter_unpack(packed)
        }
    accounts = await _without_ballast(redis, keys.accounts)
    state.accounts = {UUID(bytes=account): int(count) for account, count in accounts.items()}
    pools = await _without_ballast(redis, keys.pools)
    counts = {int(ordinal): PoolCounts.unpack(packed) for ordinal, packed in pools.items()}
    for ordinal in counts:
        state.free[ordinal] = bits_in(cast("bytes | None", await command(redis, "GET", keys.free_map(ordinal))) or b"")
    state.waiting = {ordinal: count.waiting for ordinal, count in counts.items()}
    pending = cast("list[bytes]", await command(redis, "ZRANGE", keys.pending, 0, -1))
    parked = cast("list[bytes]", await command(redis, "HKEYS", keys.parked))
    return Seen(
        state,
        counts,
        {UUID(bytes=claim_id) for claim_id in pending},
        {cast("tuple[int, int]", PARKED.unpack(place)) for place in parked},
    )


async def _without_ballast(redis: Redis, key: str) -> dict[bytes, bytes]:
    fields = cast("dict[bytes, bytes]", await command(redis, "HGETALL", key))
    fields.pop(BALLAST_FIELD, None)
    return fields


async def seen_in_postgresql(db: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease) -> GateState:
    """Read what Redis ought to know."""
    state = GateState()
    rows = await db.fetch(
        "SELECT claim.id, claim.account_id, booking.person_id, pool.ordinal, booking.place_no, booking.status"
        " FROM claim JOIN booking ON booking.claim_id = claim.id JOIN pool ON pool.id = booking.pool_id"
        " WHERE claim.release_id = $1 ORDER BY claim.id, booking.position",
        made.release_id,
    )
    claims: defaultdict[UUID, list[tuple[UUID, int, int | None, str]]] = defaultdict(list)
    people: defaultdict[UUID, set[tuple[int, int, UUID]]] = defaultdict(set)
    accounts: Counter[UUID] = Counter()
    taken: defaultdict[int, set[int]] = defaultdict(set)
    waiting: Counter[int] = Counter()
    for claim_id, account, person, ordinal, place_no, status in rows:
        claims[claim_id].append((person, ordinal, None if status == "waitlisted" else place_no or 0, status))
        if status in LIVE:
            people[person].add((ordinal, place_no or 0, claim_id))
            accounts[account] += 1
        if status == "confirmed":
            if place_no in taken[ordinal]:
                state.held_twice.add((ordinal, place_no))
            taken[ordinal].add(place_no)
        waiting[ordinal] += status == "waitlisted"
    state.claims, state.people, state.accounts = dict(claims), dict(people), dict(accounts)
    for ordinal, pool_id in enumerate(made.pools):
        places = await db.fetch("SELECT place_no FROM place WHERE pool_id = $1 AND lane = 'online'", pool_id)
        state.free[ordinal] = {row["place_no"] for row in places} - taken[ordinal]
        state.waiting[ordinal] = waiting[ordinal]
    return state


async def assert_agrees(
    db: "asyncpg.Connection[asyncpg.Record]", redis: Redis, made: MadeRelease, *, parked: bool = False
) -> Seen:
    """Assert that both say the same of a release at rest: nothing leaked, nothing lost, nothing doubled.

    Waits for the confirmations that ride on the next call. `parked`: places may be on their way to a waiter.
    """

    async def settled() -> bool:
        return not (await seen_in_redis(redis, made)).pending

    await until(settled)
    seen, truth = await seen_in_redis(redis, made), await seen_in_postgresql(db, made)
    assert not truth.held_twice
    assert seen.state.claims == truth.claims
    assert seen.state.people == truth.people
    assert seen.state.accounts == truth.accounts
    assert seen.state.waiting == truth.waiting
    if not parked:
        assert seen.parked == set()
    for ordinal, count in seen.counts.items():
        on_the_way = {number for where, number in seen.parked if where == ordinal}
        assert seen.state.free[ordinal] | on_the_way == truth.free[ordinal]
        assert count.free == len(seen.state.free[ordinal])
        assert count.pending == len(on_the_way)
        if seen.state.free[ordinal]:
            assert count.hint_byte <= min(seen.state.free[ordinal]) // 8
    return seen
