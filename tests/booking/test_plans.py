"""What phones ask for is looked up, never searched for: a table that has grown by a million rows is not read through.

The planner is left alone. Each statement is taken from the service as it sends it, and its plan is read.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.booking.claims import queries as claims
from app.booking.gate import rebuild, settlement
from app.booking.releases import queries as releases
from app.booking.releases.policy import Phase
from tests.booking.gate.builders import MadeRelease, make_release

pytestmark = pytest.mark.anyio

POOLS: Final = 20
PLACES_EACH: Final = 1_000
GROWING: Final = {"claim", "booking", "place"}
NOW: Final = datetime.now(UTC)

FILL: Final = """
WITH named AS (
    SELECT n, md5('claim' || n)::uuid AS claim_id, md5('account' || n / 3)::uuid AS account_id,
           md5('person' || n)::uuid AS person_id, pool.id AS pool_id, pool.during, n % $2::integer + 1 AS place_no
    FROM generate_series(0, $2::integer * $3::integer - 1) AS n
    JOIN pool ON pool.release_id = $1 AND pool.ordinal = n / $2
), claims AS (
    INSERT INTO claim (id, release_id, account_id, acted_by, epoch, seq, state, rules_version, request, fingerprint,
                       decided_at)
    SELECT claim_id, $1, account_id, account_id, 1, n, 'confirmed', 'r1', '{}', '\\x0011223344556677', now()
    FROM named
)
INSERT INTO booking (id, claim_id, position, person_id, pool_id, place_no, during, status, rules_version)
SELECT md5('booking' || n)::uuid, claim_id, 0, person_id, pool_id, place_no, during, 'confirmed', 'r1' FROM named
"""


class Booked(NamedTuple):
    """A release that is booked to the last place, and one of those who hold a place in it."""

    made: MadeRelease
    claim_id: UUID
    account_id: UUID
    person_id: UUID
    booking_id: UUID


@pytest.fixture
async def db(database_url: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def booked(db: "asyncpg.Connection[asyncpg.Record]") -> Booked:
    """Book thousands of places, once for the module."""
    if not await db.fetchval("SELECT EXISTS (SELECT FROM booking)"):
        made = await make_release(db, capacities=[PLACES_EACH] * POOLS)
        await db.execute(FILL, made.release_id, PLACES_EACH, POOLS)
        await db.execute("ANALYZE")
    one = await db.fetchrow(
        "SELECT claim_id, account_id, person_id, booking.id AS booking_id, release_id"
        " FROM booking JOIN claim ON claim.id = claim_id ORDER BY booking.id LIMIT 1"
    )
    assert one is not None
    pools = await db.fetch("SELECT id FROM pool WHERE release_id = $1 ORDER BY ordinal", one["release_id"])
    made = MadeRelease(one["release_id"], tuple(pool["id"] for pool in pools), (PLACES_EACH,) * POOLS)
    return Booked(made, one["claim_id"], one["account_id"], one["person_id"], one["booking_id"])


Ask = Callable[[AsyncSession, Booked], Awaitable[object]]

ASKED: Final[dict[str, Ask]] = {
    "my claims": lambda db, at: claims.claims_of_account(db, account_id=at.account_id, before=None, limit=21),
    "my claims, a later page": lambda db, at: claims.claims_of_account(
        db, account_id=at.account_id, before=(NOW + timedelta(days=1), at.claim_id), limit=21
    ),
    "a claim": lambda db, at: claims.claim_by_id(db, claim_id=at.claim_id),
    "the claim of a booking": lambda db, at: claims.claim_of_booking(db, booking_id=at.booking_id),
    "a claim, locked": lambda db, at: claims.lock_claim(db, claim_id=at.claim_id, account_id=at.account_id),
    "what a person has to come": lambda db, at: claims.claims_to_come(db, person_id=at.person_id, now=NOW),
    "giving back": lambda db, at: claims.cancel_bookings(
        db, claim_id=at.claim_id, booking_ids=[at.booking_id], now=NOW
    ),
    "a claim that has changed": lambda db, at: claims.claim_changed(db, claim_id=at.claim_id),
    "a release": lambda db, at: releases.read_release(db, release_id=at.made.release_id),
    "a pool": lambda db, at: releases.read_pool(db, pool_id=at.made.pools[0]),
    "releases": lambda db, _: releases.list_releases(db, phase=None, now=NOW, after=None, limit=21),
    "open releases, a later page": lambda db, at: releases.list_releases(
        db, phase=Phase.OPEN, now=NOW, after=(NOW - timedelta(days=1), at.made.release_id), limit=21
    ),
}
# Of the gate, which asks without SQLAlchemy.
ASKED_BY_THE_GATE: Final[dict[str, tuple[str, Callable[[Booked], tuple[object, ...]]]]] = {
    "what PostgreSQL says of claims": (settlement._TRUTH, lambda at: ([at.claim_id], at.made.release_id)),
    "claims of which the gate has not heard": (settlement._BEHIND, lambda at: (at.made.release_id, 500)),
    "claims of which the gate has heard": (settlement._MARK, lambda at: ([at.claim_id], [1])),
}


@pytest.mark.parametrize("what", ASKED)
async def test_no_table_that_grows_with_bookings_is_read_through(
    what: str, booked: Booked, engine: AsyncEngine, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    with _statements_sent(engine) as sent:
        async with AsyncSession(engine) as session:
            await ASKED[what](session, booked)
            await session.rollback()
    assert sent
    for statement, parameters in sent:
        assert _read_through(await _plan(db, statement, *parameters)) == set(), statement


@pytest.mark.parametrize("what", ASKED_BY_THE_GATE)
async def test_the_gate_reads_through_no_table_that_grows_with_bookings(
    what: str, booked: Booked, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    statement, parameters = ASKED_BY_THE_GATE[what]
    assert _read_through(await _plan(db, statement, *parameters(booked))) == set()


@pytest.mark.usefixtures("booked")
@pytest.mark.parametrize(
    "statement", ["_HAND_OUT", "_ALL_SETTLED", "_POOLS", "_VACANT", "_CLAIMS", "_PEOPLE", "_ACCOUNTS", "_HIGHEST_SEQ"]
)
async def test_a_rebuild_of_a_small_release_reads_through_none_either(
    statement: str, db: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    small = await make_release(db, capacities=(3, 3))
    assert _read_through(await _plan(db, getattr(rebuild, statement), small.release_id)) == set()


@pytest.mark.usefixtures("booked")
async def test_reading_a_table_through_would_be_noticed(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    plan = await _plan(db, "SELECT FROM booking JOIN claim ON claim.id = claim_id WHERE claim.seq = $1", 1)
    assert "claim" in _read_through(plan)


@contextmanager
def _statements_sent(engine: AsyncEngine) -> Generator[list[tuple[str, tuple[Any, ...]]]]:
    """Note every statement that goes to PostgreSQL, with its parameters."""
    sent: list[tuple[str, tuple[Any, ...]]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: tuple[Any, ...], *_: object) -> None:
        sent.append((statement, tuple(parameters)))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def _plan(db: "asyncpg.Connection[asyncpg.Record]", statement: str, *parameters: object) -> dict[str, Any]:
    (found,) = json.loads(await db.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *parameters))
    return found["Plan"]


def _read_through(plan: dict[str, Any]) -> set[str]:
    """Return which of the growing tables a plan reads from front to back."""
    found = {plan["Relation Name"]} & GROWING if plan["Node Type"] == "Seq Scan" else set[str]()
    for part in plan.get("Plans", ()):
        found |= _read_through(part)
    return found
