"""The queue before the script is bounded, and nobody in it is told "busy" whose claim has been counted."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import asyncpg
import pytest
import structlog
from pydantic import SecretStr
from redis.asyncio import Redis

from app.booking.gate.admission import _CONFIRM_DELAY_SECONDS, ScriptAnswer, _Waiting
from app.booking.gate.desk import Request
from app.booking.gate.passes import PassSigner
from app.core.ids import new_id
from tests.booking.gate.agreement import assert_agrees, seen_in_redis
from tests.booking.gate.builders import MadeRelease, Phone, Said, Worker, held, make_release, words
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.locks import no_commit_of, until_gates_wait
from tests.booking.gate.waits import PATIENCE_SECONDS, until
from tests.relay import Relay, relaying

pytestmark = pytest.mark.anyio


_WAIT_MS = 50


@asynccontextmanager
async def _stuck_script(
    made: MadeRelease,
    redis_url: str,
    tmp_path: Path,
    open_worker: OpenWorker,
    signer: PassSigner,
    **changes: object,
) -> AsyncGenerator[tuple[Worker, Relay, asyncio.Task[Said]]]:
    """Give a worker whose first claim has been counted and waits for an answer that is lost on its way."""
    socket_path = tmp_path / "valkey.sock"
    async with relaying(socket_path, Path(urlsplit(redis_url).path)) as relay:
        worker = await open_worker(redis_url=SecretStr(f"unix://{socket_path}"), **changes)
        # The script is known to the server from here on, so what is lost is an answer and not "no such script".
        await worker.ask(Phone.with_pass(signer, made).claim())
        relay.answers.swallows = True
        first = asyncio.create_task(worker.ask(Phone.with_pass(signer, made).claim()))
        await relay.answers.swallowed.wait()
        try:
            yield worker, relay, first
        finally:
            await worker.gate.close()


async def test_a_full_queue_sends_newcomers_away_at_once(
    db: "asyncpg.Connection[asyncpg.Record]",
    redis_url: str,
    tmp_path: Path,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(9,))
    async with _stuck_script(made, redis_url, tmp_path, open_worker, signer, admission_queue_limit=2) as stuck:
        worker, relay, first = stuck
        queued = [asyncio.create_task(worker.ask(Phone.with_pass(signer, made).claim())) for _ in range(2)]
        # They take their places in the queue in the order in which they were made.
        await asyncio.sleep(0)
        said = await worker.ask(Phone.with_pass(signer, made).claim())
        assert (said.status, said.word, said.body["retryable"]) == (503, "busy", True)
        assert said.body["retry_after_ms"] > 0
        relay.answers.swallows = False
        with structlog.testing.capture_logs() as logs:
            relay.cut()
            assert (await first).word == "gate_unreachable"
        # The kind of what broke, and not its text, which may quote a claim.
        assert [entry["error"] for entry in logs if entry["event"] == "gate_script_failed"] == ["ConnectionError"]
        assert {(await one).word for one in queued} == {"confirmed"}
        seen = await seen_in_redis(redis, made)
        assert len(seen.state.claims) == 4


async def test_who_waited_too_long_is_sent_away_uncounted_and_who_was_counted_is_not_called_busy(
    db: "asyncpg.Connection[asyncpg.Record]",
    redis_url: str,
    tmp_path: Path,
    open_worker: OpenWorker,
    signer: PassSigner,
    redis: Redis,
) -> None:
    made = await make_release(db, capacities=(9,))
    async with _stuck_script(made, redis_url, tmp_path, open_worker, signer, admission_wait_ms=_WAIT_MS) as stuck:
        worker, relay, first = stuck
        phones = [Phone.with_pass(signer, made) for _ in range(3)]
        late = [asyncio.create_task(worker.ask(phone.claim())) for phone in phones]
        await asyncio.sleep(2 * _WAIT_MS / 1000)
        assert not first.done()
        relay.answers.swallows = False
        relay.cut()
        # Whether this one was counted is not known, and that is what it hears.
        assert (await first).word == "gate_unreachable"
        assert {(await one).word for one in late} == {"busy"}
        assert len((await seen_in_redis(redis, made)).state.claims) == 2
    patient = await open_worker()
    assert {(await patient.ask(phone.claim())).word for phone in phones} == {"confirmed"}


async def test_a_batch_as_large_as_the_settings_allow_is_admitted(
    db: "asyncpg.Connection[asyncpg.Record]", open_worker: OpenWorker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db, capacities=(9_000,), account_limit=20)
    worker = await open_worker(
        batch_limit=1_000, people_per_claim_limit=20, commit_batch_limit=2_000, commit_wait_ms=60_000
    )
    await worker.gate.release(made.release_id)
    answers = await asyncio.gather(*(worker.ask(Phone.with_pass(signer, made, people=20).claim()) for _ in range(440)))
    assert {said.word for said in answers} == {"confirmed"}
    await assert_agrees(db, redis, made)


@pytest.mark.parametrize("closing", [False, True])
async def test_a_claim_that_was_admitted_is_seen_through_although_its_request_was_ended(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis, *, closing: bool
) -> None:
    made = await make_release(db)
    admission = (await worker.gate._rooms.room(made.release_id)).admission
    deliver = admission._deliver
    delivered = asyncio.Event()

    def deliver_to_nobody(batch: list[_Waiting], answers: list[ScriptAnswer]) -> None:
        asking.cancel()
        deliver(batch, answers)
        delivered.set()

    admission._deliver = deliver_to_nobody
    asking = asyncio.create_task(worker.ask(Phone.with_pass(signer, made).claim()))
    await delivered.wait()
    await asyncio.wait([asking])
    assert asking.cancelled()
    if closing:
        await worker.gate.close()
    else:

        async def confirmed() -> bool:
            return not (await seen_in_redis(redis, made)).pending

        await until(confirmed)
    assert await held(db, made) == [(0, 1)]


async def test_an_answer_that_cannot_be_read_costs_its_own_claim_and_no_other(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner
) -> None:
    made = await make_release(db, capacities=(9,))
    admission = (await worker.gate._rooms.room(made.release_id)).admission
    deliver = admission._deliver

    def deliver_spoilt(batch: list[_Waiting], answers: list[ScriptAnswer]) -> None:
        admission._deliver = deliver
        # A claim without its particulars, and a limit that is nobody's.
        deliver(batch, [answers[0], ScriptAnswer("T", b"", 1), ScriptAnswer("L", b"p", 1), answers[3]])

    admission._deliver = deliver_spoilt
    async with asyncio.timeout(PATIENCE_SECONDS):
        said = await asyncio.gather(*(worker.ask(Phone.with_pass(signer, made).claim()) for _ in range(4)))
        assert [one.word for one in said] == ["confirmed", "internal_error", "internal_error", "confirmed"]
        await admission.drained()
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"


async def test_a_call_that_cannot_be_made_is_told_to_those_who_are_in_it_and_the_next_is_made(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner
) -> None:
    made = await make_release(db, capacities=(9,))
    await worker.ask(Phone.with_pass(signer, made).claim())
    admission = worker.gate.entered[made.release_id.bytes].admission
    arguments, admission._arguments = admission._arguments, _not_to_be_had
    async with asyncio.timeout(PATIENCE_SECONDS):
        said = await asyncio.gather(*(worker.ask(Phone.with_pass(signer, made).claim()) for _ in range(60)))
        assert words(said) == {"internal_error": 60}
        await admission.drained()
    admission._arguments = arguments
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"


def _not_to_be_had(*_: object, **__: object) -> NoReturn:
    raise IndexError


async def test_a_gate_that_closes_leaves_nobody_without_a_word(
    db: "asyncpg.Connection[asyncpg.Record]",
    redis_url: str,
    tmp_path: Path,
    open_worker: OpenWorker,
    signer: PassSigner,
) -> None:
    made = await make_release(db, capacities=(9,))
    changes = {"shutdown_grace_seconds": 1, "redis_timeout_ms": 10_000}
    async with _stuck_script(made, redis_url, tmp_path, open_worker, signer, **changes) as (worker, _, first):
        queued = [asyncio.create_task(worker.ask(Phone.with_pass(signer, made).claim())) for _ in range(60)]
        looking = asyncio.create_task(worker.ask(Request("GET", f"/v1/releases/{new_id()}/availability", {})))
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await worker.gate.close()
            said = await asyncio.gather(first, *queued, looking)
        # Each may ask again, elsewhere, with the same id.
        assert {one.status for one in said} == {503}
        assert all(one.body["retryable"] for one in said)


async def test_a_gate_that_closes_leaves_nobody_without_a_word_who_waits_for_a_connection(
    db: "asyncpg.Connection[asyncpg.Record]",
    redis_url: str,
    tmp_path: Path,
    open_worker: OpenWorker,
    signer: PassSigner,
) -> None:
    made = await make_release(db, capacities=(9,))
    socket_path = tmp_path / "valkey.sock"
    async with relaying(socket_path, Path(urlsplit(redis_url).path)) as relay:
        worker = await open_worker(
            redis_url=SecretStr(f"unix://{socket_path}"), shutdown_grace_seconds=1, redis_timeout_ms=10_000
        )
        assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
        relay.answers.swallows = True
        worker.gate.entered[made.release_id.bytes].links.claims.cut()
        asking = asyncio.create_task(worker.ask(Phone.with_pass(signer, made).claim()))
        await relay.answers.swallowed.wait()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await worker.gate.close()
            assert (await asking).word == "gate_unreachable"


async def test_a_gate_that_closes_leaves_no_winner_without_a_word(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str, open_worker: OpenWorker, signer: PassSigner
) -> None:
    made = await make_release(db)
    worker = await open_worker(shutdown_grace_seconds=1, commit_wait_ms=30_000)
    await worker.gate.release(made.release_id)
    async with no_commit_of(database_url, made):
        asking = asyncio.create_task(worker.ask(Phone.with_pass(signer, made).claim()))
        await until_gates_wait(db)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await worker.gate.close()
            assert (await asking).word == "gate_unreachable"


async def test_a_confirmation_whose_moment_comes_after_the_end_connects_nothing(
    db: "asyncpg.Connection[asyncpg.Record]", worker: Worker, signer: PassSigner, redis: Redis
) -> None:
    made = await make_release(db)
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    await worker.gate.close()
    await asyncio.sleep(4 * _CONFIRM_DELAY_SECONDS)
    claims = worker.gate.entered[made.release_id.bytes].links.claims
    assert (claims.is_up, claims.identity) == (False, "")
    # It is in PostgreSQL; that the gate does not know of it yet is for the sweep.
    assert len((await seen_in_redis(redis, made)).pending) == 1
