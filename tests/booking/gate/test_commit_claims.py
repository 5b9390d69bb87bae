"""The group commit in PostgreSQL: each outcome, and that a claim is whole or not at all."""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.core.ids import new_id
from tests.booking.gate.builders import Wish, commit, held, make_release, rows_of, winner
from tests.booking.gate.waits import until_blocked

pytestmark = pytest.mark.anyio


async def _epoch(db: "asyncpg.Connection[asyncpg.Record]", release_id: UUID, epoch: int) -> None:
    await db.execute("UPDATE release SET epoch = $2 WHERE id = $1", release_id, epoch)


async def test_claims_of_one_tick_are_written_in_one_call(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(3, 2))
    winners = [
        winner(Wish(uuid4(), ordinal, place_no), seq=10 * ordinal + place_no)
        for ordinal, capacity in enumerate(made.capacities)
        for place_no in range(1, capacity + 1)
    ]
    outcomes = await commit(db, made.at_epoch(0), *winners)
    assert set(outcomes.values()) == {"in"}
    assert await held(db, made) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]


async def test_the_row_says_what_the_script_said(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, waitlist_limit=5)
    placed, waiting, account = uuid4(), uuid4(), uuid4()
    claim = winner(Wish(placed, 0, 4), Wish(waiting, 0, None), seq=17, account=account)
    assert await commit(db, made.at_epoch(0), claim) == {claim.record.claim_id: "in"}
    row = await db.fetchrow("SELECT * FROM claim WHERE id = $1", claim.record.claim_id)
    assert row is not None
    assert (row["state"], row["seq"], row["epoch"], row["account_id"]) == ("confirmed", 17, 0, account)
    assert (row["rules_version"], bytes(row["fingerprint"])) == ("r1", b"fingerpr")
    bookings = await db.fetch("SELECT * FROM booking WHERE claim_id = $1 ORDER BY position", claim.record.claim_id)
    assert [(b["person_id"], b["place_no"], b["status"], b["wait_seq"]) for b in bookings] == [
        (placed, 4, "confirmed", None),
        (waiting, None, "waitlisted", 17),
    ]
    # The answer told the phone this id, and can tell it again after any crash.
    assert bookings[0]["id"] == claim.record.booking_id(claim.record.entries[0])


async def test_a_claim_that_only_waits_is_waitlisted(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    claim = winner(Wish(uuid4(), 0, None), seq=3)
    assert await commit(db, made.at_epoch(0), claim) == {claim.record.claim_id: "in"}
    assert await db.fetchval("SELECT state FROM claim WHERE id = $1", claim.record.claim_id) == "waitlisted"


async def test_the_same_claim_again_is_known(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    claim = winner(Wish(uuid4()))
    assert await commit(db, made.at_epoch(0), claim) == {claim.record.claim_id: "in"}
    assert await commit(db, made.at_epoch(0), claim) == {claim.record.claim_id: "known"}
    assert len(await rows_of(db, claim.record.claim_id)) == 1


async def test_a_claim_that_was_declared_void_stays_void(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    claim = winner(Wish(uuid4()))
    await db.execute("SELECT * FROM void_claims_v1($1, 0, $2)", made.release_id, [claim.record.claim_id])
    assert await commit(db, made.at_epoch(0), claim) == {claim.record.claim_id: "void"}
    assert await held(db, made) == []


@pytest.mark.parametrize("gate_epoch", [0, 2])
async def test_a_claim_of_another_epoch_is_stale_and_writes_nothing(
    db: "asyncpg.Connection[asyncpg.Record]", gate_epoch: int
) -> None:
    made = await make_release(db)
    await _epoch(db, made.release_id, 1)
    claim = winner(Wish(uuid4()))
    assert await commit(db, made.at_epoch(gate_epoch), claim) == {claim.record.claim_id: "stale"}
    assert await db.fetchval("SELECT count(*) FROM claim WHERE release_id = $1", made.release_id) == 0


async def test_a_person_who_is_elsewhere_at_that_time_clashes_and_the_id_is_void_for_ever(
    db: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    made = await make_release(db, capacities=(2, 2), start_hours=(48, 48))
    person = uuid4()
    first, second = winner(Wish(person, 0), seq=1), winner(Wish(person, 1), seq=2)
    assert await commit(db, made.at_epoch(0), first) == {first.record.claim_id: "in"}
    assert await commit(db, made.at_epoch(0), second) == {second.record.claim_id: "clash"}
    assert await held(db, made) == [(0, 1)]
    # Even after the other booking is gone: the phone has heard a final no.
    await db.execute("UPDATE booking SET status = 'cancelled' WHERE claim_id = $1", first.record.claim_id)
    assert await commit(db, made.at_epoch(0), second) == {second.record.claim_id: "clash"}


async def test_two_claims_of_one_call_that_clash_leave_one_of_them(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(2, 2), start_hours=(48, 48))
    person = uuid4()
    first, second = winner(Wish(person, 0), seq=1), winner(Wish(person, 1), seq=2)
    outcomes = await commit(db, made.at_epoch(0), first, second)
    assert sorted(outcomes.values()) == ["clash", "in"]
    assert len(await held(db, made)) == 1


async def test_waiting_at_a_time_when_one_is_elsewhere_is_allowed(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(2, 2), start_hours=(48, 48))
    person = uuid4()
    outcomes = await commit(db, made.at_epoch(0), winner(Wish(person, 0), seq=1), winner(Wish(person, 1, None), seq=2))
    assert set(outcomes.values()) == {"in"}


async def test_a_second_claim_for_a_person_in_the_same_pool_is_told_apart(
    db: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    made = await make_release(db)
    person = uuid4()
    first, second = winner(Wish(person, 0, 1), seq=1), winner(Wish(person, 0, 2), seq=2)
    await commit(db, made.at_epoch(0), first)
    assert await commit(db, made.at_epoch(0), second) == {second.record.claim_id: "person_booked"}
    # Nothing of it stays, so that its id can still be decided once the gate has been put in order.
    assert await db.fetchval("SELECT count(*) FROM claim WHERE id = $1", second.record.claim_id) == 0


@pytest.mark.parametrize("place_no", [1, 6], ids=["held by another", "does not exist"])
async def test_a_place_that_cannot_be_had_is_told_apart(
    db: "asyncpg.Connection[asyncpg.Record]", place_no: int
) -> None:
    made = await make_release(db, capacities=(5,))
    await commit(db, made.at_epoch(0), winner(Wish(uuid4(), 0, 1), seq=1))
    claim = winner(Wish(uuid4(), 0, place_no), seq=2)
    assert await commit(db, made.at_epoch(0), claim) == {claim.record.claim_id: "place_taken"}
    assert await held(db, made) == [(0, 1)]
    assert await db.fetchval("SELECT count(*) FROM claim WHERE id = $1", claim.record.claim_id) == 0


async def test_a_pool_that_does_not_exist_gets_an_answer_too(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    claim = winner(Wish(uuid4(), 7, 1))
    assert await commit(db, made.at_epoch(0), claim) == {claim.record.claim_id: "place_taken"}


async def test_a_claim_id_with_another_sequence_number_differs(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db)
    person, claim_id = uuid4(), new_id()
    await commit(db, made.at_epoch(0), winner(Wish(person, 0, 1), seq=1, claim_id=claim_id))
    again = winner(Wish(person, 0, 2), seq=2, claim_id=claim_id)
    assert await commit(db, made.at_epoch(0), again) == {claim_id: "differs"}
    assert await rows_of(db, claim_id) == [(person, 1, "confirmed")]


async def test_a_claim_id_that_belongs_to_another_release_is_told_apart_from_a_contradiction(
    db: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    # A phone can do this whenever it likes; it must not be able to close a release by it.
    made, other = await make_release(db), await make_release(db)
    claim_id = new_id()
    await commit(db, other.at_epoch(0), winner(Wish(uuid4()), claim_id=claim_id))
    assert await commit(db, made.at_epoch(0), winner(Wish(uuid4()), claim_id=claim_id)) == {claim_id: "elsewhere"}


async def test_a_family_of_which_one_clashes_is_left_out_whole(db: "asyncpg.Connection[asyncpg.Record]") -> None:
    made = await make_release(db, capacities=(5, 5), start_hours=(48, 48))
    busy, free = uuid4(), uuid4()
    await commit(db, made.at_epoch(0), winner(Wish(busy, 0, 1), seq=1))
    family = winner(Wish(free, 1, 1), Wish(busy, 1, 2), seq=2)
    stranger = winner(Wish(uuid4(), 1, 3), seq=3)
    outcomes = await commit(db, made.at_epoch(0), family, stranger)
    assert outcomes == {family.record.claim_id: "clash", stranger.record.claim_id: "in"}
    assert await rows_of(db, family.record.claim_id) == []
    assert await held(db, made) == [(0, 1), (1, 3)]


async def test_who_collided_only_with_a_claim_that_was_undone_is_to_be_sent_again(
    db: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    made = await make_release(db, capacities=(5, 5), start_hours=(48, 48))
    busy, child = uuid4(), uuid4()
    await commit(db, made.at_epoch(0), winner(Wish(busy, 1, 1), seq=1))
    # The family stands first by place; it is undone because of `busy`, and only then was the child's own claim good.
    family = winner(Wish(child, 0, 1), Wish(busy, 0, 2), seq=2)
    alone = winner(Wish(child, 1, 2), seq=3)
    outcomes = await commit(db, made.at_epoch(0), family, alone)
    assert outcomes[family.record.claim_id] == "clash"
    assert outcomes[alone.record.claim_id] == "again"
    assert await commit(db, made.at_epoch(0), alone) == {alone.record.claim_id: "in"}


async def test_two_workers_with_the_same_claim_write_it_once_and_hear_the_same(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    made = await make_release(db)
    claim = winner(Wish(uuid4()))
    one, two = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    try:
        writing = one.transaction()
        await writing.start()
        assert await commit(one, made.at_epoch(0), claim) == {claim.record.claim_id: "in"}
        second = asyncio.create_task(commit(two, made.at_epoch(0), claim))
        await until_blocked(db, two)
        assert not second.done()
        await writing.commit()
        assert await second == {claim.record.claim_id: "known"}
    finally:
        await one.close()
        await two.close()
    assert len(await rows_of(db, claim.record.claim_id)) == 1


async def test_two_workers_whose_claims_cross_do_not_deadlock(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    made = await make_release(db, capacities=(1_500,))
    one, two = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    try:
        for first in range(1, 1_500, 300):
            claims = [winner(Wish(uuid4(), 0, place_no), seq=place_no) for place_no in range(first, first + 300)]
            there, back = await asyncio.gather(
                commit(one, made.at_epoch(0), *claims), commit(two, made.at_epoch(0), *reversed(claims))
            )
            assert {(there[claim], back[claim]) for claim in there} <= {("in", "known"), ("known", "in")}
    finally:
        await one.close()
        await two.close()
    assert await held(db, made) == [(0, place_no) for place_no in range(1, 1_501)]
