"""Whatever goes wrong at the desk is an answer."""

import json

import asyncpg
import pytest

from app.booking.gate.desk import Desk
from app.booking.gate.passes import Pass, PassSigner
from app.core.clock import Clock
from tests.booking.gate.builders import Phone, Worker, changed, make_release, read
from tests.booking.gate.conftest import OpenWorker

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
