"""Many phones, several workers, one release: what holds when everybody asks at once."""

import asyncio
import random
from collections import Counter

import asyncpg
import pytest
from redis.asyncio import Redis

from app.booking.gate.passes import PassSigner
from app.core.ids import new_id
from tests.booking.gate.agreement import assert_agrees
from tests.booking.gate.builders import Phone, held, make_release, words
from tests.booking.gate.conftest import OpenWorker

pytestmark = pytest.mark.anyio


async def test_two_hundred_claims_for_one_place_leave_one_winner(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(1,))
    workers = [await open_worker(), await open_worker()]
    answers = await asyncio.gather(
        *(workers[n % 2].ask(Phone.with_pass(signer, made).claim()) for n in range(200)),
    )
    told = words(answers)
    assert told["confirmed"] == 1
    # The rest heard no, and only those before the winner was durable heard one that was not final.
    assert told["confirmed"] + told["full"] + told["sold_out"] == 200
    assert await held(db, made) == [(0, 1)]
    await assert_agrees(db, redis, made)


async def test_the_same_claim_sent_to_two_workers_at_once_gets_one_answer(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(50,))
    workers = [await open_worker(), await open_worker()]
    requests = [Phone.with_pass(signer, made).claim() for _ in range(50)]
    there, back = await asyncio.gather(
        *(asyncio.gather(*(worker.ask(request) for request in requests)) for worker in workers)
    )
    for one, other in zip(there, back, strict=True):
        assert one.word == other.word == "confirmed"
        assert one.body == other.body
        assert one.status in {200, 201}
    assert len(await held(db, made)) == 50
    await assert_agrees(db, redis, made)


async def test_a_double_tap_books_once(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(5,))
    worker = await open_worker()
    phone = Phone.with_pass(signer, made)
    request = phone.claim()
    same = await asyncio.gather(*(worker.ask(request) for _ in range(5)))
    assert {said.word for said in same} == {"confirmed"}
    assert len({said.place for said in same}) == 1
    # A second tap that the mini-program gave an id of its own hears of the first.
    another = await worker.ask(phone.claim())
    assert (another.status, another.word) == (409, "already_booked")
    assert another.body["booking"] == same[0].body["bookings"][0]
    assert len(await held(db, made)) == 1
    await assert_agrees(db, redis, made)


async def test_three_thousand_claims_at_two_workers_fill_three_hundred_places_once(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    capacities = (35,) * 3 + (18,) * 8 + (17,) * 3
    made = await make_release(db, capacities=capacities)
    # Everybody's list names every pool, so nobody may be sent away while a place is free.
    workers = [await open_worker(choices_per_claim_limit=14), await open_worker(choices_per_claim_limit=14)]
    draw = random.Random(300)  # noqa: S311 - the crowd of the test, the same each time
    requests = [
        Phone.with_pass(signer, made).claim(*draw.sample(range(len(capacities)), k=len(capacities)))
        for _ in range(3_000)
    ]
    answers = await asyncio.gather(*(workers[n % 2].ask(request) for n, request in enumerate(requests)))
    told = words(answers)
    assert told["confirmed"] == 300, told
    places = Counter(said.place for said in answers if said.word == "confirmed")
    assert max(places.values()) == 1
    assert await held(db, made) == [
        (ordinal, n) for ordinal, capacity in enumerate(capacities) for n in range(1, capacity + 1)
    ]
    seen = await assert_agrees(db, redis, made)
    assert all(count.free == 0 for count in seen.counts.values())


async def test_families_of_two_never_get_one_place(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(9, 9))
    workers = [await open_worker(), await open_worker()]
    answers = await asyncio.gather(
        *(workers[n % 2].ask(Phone.with_pass(signer, made, people=2).claim(n % 2)) for n in range(60))
    )
    assert words(answers)["confirmed"] == 8
    assert all(len(said.body["bookings"]) == 2 for said in answers if said.word == "confirmed")
    # One place of each pool is left: nobody was alone.
    seen = await assert_agrees(db, redis, made)
    assert [count.free for count in seen.counts.values()] == [1, 1]


async def test_limits_hold_against_taps_on_every_pool_at_once(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(5,) * 6, person_limit=2, account_limit=3)
    workers = [await open_worker(), await open_worker()]
    phone = Phone.with_pass(signer, made, people=2)
    answers = await asyncio.gather(
        *(
            workers[n % 2].ask(phone.claim(ordinal, people=[person]))
            for n, (ordinal, person) in enumerate((o, p) for o in range(6) for p in phone.people)
        )
    )
    told = words(answers)
    # Who asked while the three were on their way to PostgreSQL hears nothing final.
    assert told["confirmed"] == 3
    assert told["limit_reached"] + told["undecided"] == 9
    rows = await db.fetch("SELECT count(*) FROM booking WHERE person_id = ANY ($1) GROUP BY person_id", phone.people)
    assert sorted(row["count"] for row in rows) == [1, 2]
    await assert_agrees(db, redis, made)


async def test_a_person_claimed_by_two_guardians_for_two_pools_at_one_hour_is_in_one(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(20, 20), start_hours=(48, 48))
    workers = [await open_worker(), await open_worker()]
    children = [[new_id()] for _ in range(20)]
    answers = await asyncio.gather(
        *(
            workers[guardian].ask(Phone.with_pass(signer, made, people=child).claim(guardian))
            for child in children
            for guardian in (0, 1)
        )
    )
    assert words(answers) == {"confirmed": 20, "time_clash": 20}
    await assert_agrees(db, redis, made)
