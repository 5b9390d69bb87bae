"""A web worker that is told to end answers what it has been asked, and ends. Carried in both ways."""

import asyncio
import signal

import asyncpg
import pytest

from app.booking.gate.passes import PassSigner
from app.core.settings import Settings
from tests.booking.gate.builders import Phone, changed, held, make_release
from tests.booking.gate.locks import no_commit_of, until_gates_wait
from tests.contract.line import claim_message, connected, message
from tests.races.servers import serving_processes

pytestmark = pytest.mark.anyio

_HELD_SECONDS = 0.5
_STOP_SECONDS = 30.0


# What has a query goes the way of ASGI.
@pytest.mark.parametrize("query", ["", "?a=b"])
async def test_a_worker_that_ends_answers_its_winners_first_and_hangs_up_on_who_is_idle(
    db: "asyncpg.Connection[asyncpg.Record]", database_url: str, settings: Settings, signer: PassSigner, query: str
) -> None:
    made = await make_release(db)
    phone = Phone.with_pass(signer, made)
    claim = phone.claim()
    claim = changed(claim, path=claim.path + query)
    with serving_processes(settings, count=1) as (server,):
        async with connected(server.address) as line, connected(server.address) as idle:
            poll = message("GET", f"/v1/releases/{made.release_id}/availability")
            assert (await idle.ask(poll)).status == 200
            async with no_commit_of(database_url, made):
                line.send(claim_message(phone, claim))
                await until_gates_wait(db)
                server.process.terminate()
                assert await idle.hear_the_end() == b""
                assert await line.says_nothing_for(_HELD_SECONDS)
            heard = await line.hear()
            assert (heard.status, heard.word, heard.headers["connection"]) == (201, "confirmed", "close")
            assert await line.hear_the_end() == b""
        # It goes down by the signal that it was sent, when all is done.
        assert await asyncio.to_thread(server.process.wait, _STOP_SECONDS) == -signal.SIGTERM
    assert await held(db, made) == [(0, 1)]
