"""Whatever goes wrong at the desk is an answer, and many may be told the same."""

import asyncio
import json
from typing import NoReturn

import asyncpg
import pytest

from app.booking.gate.desk import Desk, Request
from app.booking.gate.passes import Pass, PassSigner
from app.core.clock import Clock
from app.core.web.documents import Answer
from tests.booking.gate.builders import Phone, Worker, changed, make_release, read
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.waits import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


class _BrokenSigner(PassSigner):
    """A defect of ours, where none is expected."""

    def verify(self, text: bytes) -> Pass:
        raise ZeroDivisionError(text)


async def test_a_defect_of_ours_is_told_as_a_problem_and_without_its_particulars(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner
) -> None:
    made = await make_release(db)
    phone = Phone.with_pass(signer, made)

    answer = await Desk(worker.gate, _BrokenSigner("a-key-that-is-never-used-for-signing")).answer(phone.claim())

    assert (answer.status, read(answer).word) == (500, "internal_error")
    assert json.loads(answer.body)["retryable"] is True
    assert phone.text not in answer.body.decode()


async def test_questions_about_a_claim_take_nothing_from_the_claims(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner
) -> None:
    made = await make_release(db, capacities=(9,))
    # An hour of the clock would be another second.
    worker = await open_worker(claim_rate_per_second=2)
    worker.gate.clock.now_ms = lambda: made_ms
    made_ms = Clock().now_ms()
    phone = Phone.with_pass(signer, made, people=2)
    claim = phone.claim(people=phone.people[:1])
    question = changed(claim, method="GET", body=b"")
    desk = Desk(worker.gate, signer)

    asked = [read(await desk.answer(question)).status for _ in range(3)]
    assert asked == [404, 404, 429]
    assert read(await desk.answer(claim)).word == "confirmed"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/claims/{id}/bookings", 404),
        ("/v1/claims/", 404),
        ("/v1/claims/urn:uuid:{id}", 422),
        ("/v1/claims/{{{id}}}", 422),
        ("/v1/releases/{id}/x/availability", 404),
        ("/v1/releases/urn:uuid:{id}/availability", 422),
    ],
)
async def test_a_path_that_is_nearly_ours_is_not_taken_for_it(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, path: str, status: int
) -> None:
    made = await make_release(db)
    request = Phone.with_pass(signer, made).claim()
    method = "PUT" if "claims" in path else "GET"
    answer = await worker.desk.answer(changed(request, method=method, path=path.format(id=made.release_id)))
    assert answer.status == status


async def test_all_who_poll_within_a_moment_share_one_answer_however_they_write_the_release(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker
) -> None:
    made = await make_release(db)
    worker = await open_worker()
    now_ms = Clock().now_ms()
    # The moment does not pass meanwhile.
    worker.gate.clock.now_ms = lambda: now_ms
    asked = [
        await worker.desk.answer(Request("GET", f"/v1/releases/{text}/availability", {}))
        for text in (str(made.release_id), str(made.release_id).upper(), str(made.release_id))
    ]
    assert asked[0].status == 200
    assert asked[1] is asked[0]
    assert asked[2] is asked[0]


async def test_kept_polls_have_a_bound_and_the_stalest_goes_first(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.booking.gate.desk._POLLS_MAX", 2)
    worker = await open_worker()
    now_ms = Clock().now_ms()
    worker.gate.clock.now_ms = lambda: now_ms
    first, second, third = [str((await make_release(db)).release_id) for _ in range(3)]

    async def polled(text: str) -> Answer:
        answer = await worker.desk.answer(Request("GET", f"/v1/releases/{text}/availability", {}))
        assert answer.status == 200
        return answer

    def is_over(text: str) -> None:
        worker.desk._polls[text] = worker.desk._polls[text]._replace(until_ms=0)

    of_first = await polled(first)
    await polled(second)
    # One that is asked anew after its moment takes nobody's place, and is not the stalest any more.
    is_over(second)
    of_second = await polled(second)
    assert await polled(first) is of_first
    is_over(first)
    renewed = await polled(first)
    await polled(third)
    assert await polled(first) is renewed
    assert len(worker.desk._polls) == 2
    assert await polled(second) is not of_second


async def test_an_answer_that_cannot_be_written_is_told_as_a_defect(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await make_release(db)
    request = Phone.with_pass(signer, made).claim()
    await worker.gate.release(made.release_id)

    def cannot(*_: object) -> NoReturn:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("app.booking.gate.desk.claim_view", cannot)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await worker.ask(request)).word == "internal_error"
    # What was won was won.
    assert (await worker.ask(request)).word == "confirmed"


async def test_claims_of_one_moment_are_answered_each_for_itself(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner
) -> None:
    made, unknown = await make_release(db, capacities=(9,)), await make_release(db, capacities=(9,))
    await worker.gate.release(made.release_id)
    phone = Phone.with_pass(signer, made)
    claim = phone.claim()
    asked = {
        "confirmed": claim,
        "not_authenticated": changed(phone.claim(), authorization=b""),
        "pass_invalid": changed(phone.claim(), authorization=b"Pass me"),
        "malformed_json": changed(phone.claim(), body=b"{"),
        "unsupported_media_type": changed(phone.claim(), content_type=b"text/plain"),
        "not_found": changed(phone.claim(), path=claim.path + "/x"),
        "validation_failed": changed(phone.claim(), path="/v1/claims/x"),
        "not_eligible": Phone.with_pass(signer, made).claim(people=phone.people),
        "unknown_pool": Phone.with_pass(signer, made).claim(),
        "first_of_its_release": Phone.with_pass(signer, unknown).claim(),
        "in_another_notation": changed(phone.claim(), body=claim.body.upper()),
    }
    asked["unknown_pool"].body = asked["unknown_pool"].body.replace(
        str(made.pools[0]).encode(), str(unknown.pools[0]).encode()
    )
    said = await asyncio.gather(*(worker.ask(request) for request in asked.values()))
    told = dict(zip(asked, (one.word for one in said), strict=True))
    assert told.pop("first_of_its_release") == "confirmed"
    # In upper case these are no names that a claim has.
    assert told.pop("in_another_notation") == "malformed_json"
    assert told == {word: word for word in told}
