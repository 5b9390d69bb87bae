"""Two families give back at once, and the same people wait for their places in opposite order."""

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.booking.claims.conftest import MakeFamily
from tests.booking.gate.builders import Wish, commit, make_release, rows_of, winner
from tests.booking.gate.waits import until

pytestmark = pytest.mark.anyio

if TYPE_CHECKING:
    Db = asyncpg.Connection[asyncpg.Record]

_WHO_WAITS_FOR = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'clocktower-api' AND $1 = ANY (pg_blocking_pids(pid))
"""


async def _until_held_up(db: "Db", by_pid: int) -> int:
    """Return the backend of the API that waits for this one, once there is one."""
    pids: list[int] = []

    async def held_up() -> bool:
        pids[:] = [row["pid"] for row in await db.fetch(_WHO_WAITS_FOR, by_pid)]
        return bool(pids)

    await until(held_up)
    return pids[0]


async def test_two_families_that_give_back_to_the_same_waiters_in_crossed_order_both_succeed(
    db: "Db", database_url: str, make_family: MakeFamily
) -> None:
    made = await make_release(db, capacities=(1, 1, 1, 1), waitlist_limit=5)
    # Places are handed over in the order of their pools' ids.
    first, second, third, fourth = sorted(range(4), key=lambda ordinal: made.pools[ordinal])
    one, other = await make_family("one", made), await make_family("other", made)
    ones = winner(Wish(uuid4(), first), Wish(uuid4(), second), account=one.phone.account, seq=1)
    others = winner(Wish(uuid4(), third), Wish(uuid4(), fourth), account=other.phone.account, seq=2)
    x = winner(Wish(x1 := uuid4(), first, None), Wish(x2 := uuid4(), fourth, None), seq=3)
    y = winner(Wish(y1 := uuid4(), second, None), Wish(y2 := uuid4(), third, None), seq=4)
    assert set((await commit(db, made.at_epoch(0), ones, others, x, y)).values()) == {"in"}

    def path(claim_id: UUID) -> str:
        return f"/v1/claims/{claim_id}"

    blocker = await asyncpg.connect(database_url)
    try:
        blocking = blocker.transaction()
        await blocking.start()
        await blocker.execute("SELECT FROM booking WHERE person_id = $1 FOR UPDATE", y1)
        giving_one = asyncio.create_task(one.give_back(path(ones.record.claim_id)))
        # It has handed the first place to X, and stands before Y.
        held_up = await _until_held_up(db, blocker.get_server_pid())
        giving_other = asyncio.create_task(other.give_back(path(others.record.claim_id)))
        # It has handed the third place to Y, and stands before X.
        await _until_held_up(db, held_up)
        await blocking.rollback()
        answers = await asyncio.gather(giving_one, giving_other)
    finally:
        await blocker.close()

    assert [answer.status_code for answer in answers] == [200, 200]
    assert {answer.json()["state"] for answer in answers} == {"cancelled"}
    assert await rows_of(db, x.record.claim_id) == [(x1, 1, "confirmed"), (x2, 1, "confirmed")]
    assert await rows_of(db, y.record.claim_id) == [(y1, 1, "confirmed"), (y2, 1, "confirmed")]
