"""Whatever goes wrong at the desk is an answer."""

import json

import asyncpg
import pytest

from app.booking.gate.desk import Desk
from app.booking.gate.passes import Pass, PassSigner
from tests.booking.gate.builders import Phone, Worker, make_release, read

pytestmark = pytest.mark.anyio


class _BrokenSigner(PassSigner):
    """A defect of ours, where none is expected."""

    def verify(self, text: str) -> Pass:
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
