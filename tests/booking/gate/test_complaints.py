"""An outage is told in the log, and does not fill it."""

import time
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from app.booking.gate.complaints import LIMIT, WINDOW_SECONDS, Complaints
from app.booking.gate.passes import PassSigner
from tests.booking.gate.builders import Phone, make_release
from tests.booking.gate.conftest import OpenWorker

pytestmark = pytest.mark.anyio


def test_a_complaint_is_made_once_in_a_window_and_another_one_at_once() -> None:
    complaints = Complaints()
    assert complaints.is_new(("release", ConnectionError), 100.0)
    assert not complaints.is_new(("release", ConnectionError), 100.0 + WINDOW_SECONDS / 2)
    assert complaints.is_new(("release", TimeoutError), 100.0 + WINDOW_SECONDS / 2)
    assert complaints.is_new(("release", ConnectionError), 100.0 + WINDOW_SECONDS)


def test_a_flood_of_different_complaints_is_bounded_in_each_window() -> None:
    complaints = Complaints()
    assert sum(complaints.is_new(n, 100.0) for n in range(10 * LIMIT)) == LIMIT
    assert complaints.is_new(0, 100.0 + WINDOW_SECONDS)


async def test_a_gate_that_cannot_enter_says_so_once_and_not_at_each_try(
    db: "asyncpg.Connection[asyncpg.Record]",
    open_worker: OpenWorker,
    signer: PassSigner,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = await make_release(db)
    worker = await open_worker(redis_url=SecretStr(f"unix://{tmp_path}/nobody.sock"))
    since_seconds = time.monotonic()
    for _ in range(30):
        assert (await worker.ask(Phone.with_pass(signer, made).claim())).status == 503
    windows = 1 + (time.monotonic() - since_seconds) // WINDOW_SECONDS
    said = [record.getMessage() for record in caplog.records if "'gate_" in record.getMessage()]
    assert 1 <= len(said) <= windows
    assert "gate_cannot_enter" in said[0]
    assert str(made.release_id) in said[0]
    assert "CLOCKTOWER_REDIS_URL" in said[0]
