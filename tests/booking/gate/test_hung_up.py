"""A claim that the script has not judged ends with its phone's connection, wherever it waits.

The phone may have sent it again on another line and have heard "sold out" for good. Judged after that, the first copy
could get a place that has come back since, and nobody would know of it.
"""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
import pytest
import uvicorn
from uvicorn.server import ServerState

from app.booking.gate.admission import _FULL_CALL
from app.booking.gate.asgi import GateInFront
from app.booking.gate.desk import Answer, Request
from app.booking.gate.passes import PassSigner
from app.booking.gate.protocol import DESK_STATE, GateProtocol
from tests.booking.gate.builders import MadeRelease, Phone, Worker, held, make_release
from tests.booking.gate.conftest import OpenWorker
from tests.booking.gate.locks import no_rebuild_of, until_gates_wait
from tests.booking.gate.waits import until

pytestmark = pytest.mark.anyio

Db: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


_STALL_SECONDS = 0.02


class _Asked(Request):
    """A claim whose phone can hang up."""

    __slots__ = ("answers", "is_over")

    def __init__(self, worker: Worker, made: MadeRelease, signer: PassSigner) -> None:
        claim = Phone.with_pass(signer, made).claim()
        super().__init__(claim.method, claim.path, {}, claim.body)
        self.authorization, self.content_type = claim.authorization, claim.content_type
        self.is_over = False
        self.answers: list[Answer] = []
        worker.desk.take(self, self.answers.append)

    def has_hung_up(self) -> bool:
        return self.is_over

    async def answered(self) -> bool:
        return bool(self.answers)


async def _nobody(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("nothing here is for the application behind the gate")


@asynccontextmanager
async def _serving(worker: Worker) -> AsyncGenerator[int]:
    """Serve the worker's desk from the socket, as a web worker does; gives the port."""
    desk = worker.desk
    application = GateInFront(_nobody, lambda: desk, body_limit_bytes=desk.body_limit_bytes)
    config = uvicorn.Config(application, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: GateProtocol(config, state, {DESK_STATE: desk}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _as_sent(claim: Request, *more_headers: bytes) -> bytes:
    lines = [
        f"{claim.method} {claim.path} HTTP/1.1".encode(),
        b"host: gate.test",
        b"content-type: application/json",
        b"authorization: " + claim.authorization,
        b"content-length: %d" % len(claim.body),
        *more_headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + claim.body


async def _made(db: Db, worker: Worker, signer: PassSigner) -> MadeRelease:
    """Publish a release and book its first place: the worker knows it, and its link to Redis is up."""
    made = await make_release(db, capacities=(100,))
    assert (await worker.ask(Phone.with_pass(signer, made).claim())).word == "confirmed"
    return made


async def _at_rest(worker: Worker, made: MadeRelease) -> None:
    """Return once no claim of this release is on its way."""
    room = await worker.gate._rooms.room(made.release_id)
    await room.admission.drained()


async def test_a_claim_in_the_queue_ends_with_its_phone(db: Db, worker: Worker, signer: PassSigner) -> None:
    made = await _made(db, worker, signer)
    gone, there = (_Asked(worker, made, signer) for _ in range(2))
    gone.is_over = True
    await until(there.answered)
    assert there.answers[0].status == 201
    assert [answer.status for answer in gone.answers] == [503]
    assert await held(db, made) == [(0, 1), (0, 2)]


async def test_a_claim_whose_call_waits_for_a_link_ends_with_its_phone(
    db: Db, worker: Worker, signer: PassSigner
) -> None:
    made = await _made(db, worker, signer)
    room = await worker.gate._rooms.room(made.release_id)
    room.links.claims.cut()
    gone, there = (_Asked(worker, made, signer) for _ in range(2))
    while not room.admission._under_way:  # noqa: ASYNC110 - turn by turn, to be there before the link is
        await asyncio.sleep(0)
    gone.is_over = True
    await until(there.answered)
    assert there.answers[0].status == 201
    assert [answer.status for answer in gone.answers] == [503]
    assert await held(db, made) == [(0, 1), (0, 2)]


async def _first_line(phone: socket.socket) -> bytes:
    """Return how its answer begins."""
    phone.settimeout(0)
    return await asyncio.get_running_loop().sock_recv(phone, len(b"HTTP/1.1 201"))


@pytest.mark.parametrize(
    "more_headers", [pytest.param([], id="from the socket"), pytest.param([b"expect: something"], id="by ASGI")]
)
async def test_a_claim_that_waits_for_a_rebuild_ends_with_its_phone(
    db: Db, database_url: str, open_worker: OpenWorker, signer: PassSigner, more_headers: list[bytes]
) -> None:
    worker = await open_worker()
    made = await make_release(db)
    async with _serving(worker) as port:
        with socket.create_connection(("127.0.0.1", port)) as there:
            async with no_rebuild_of(database_url, [made.release_id]):
                with socket.create_connection(("127.0.0.1", port)) as gone:
                    for phone in (gone, there):
                        phone.sendall(_as_sent(Phone.with_pass(signer, made).claim(), *more_headers))
                    await until_gates_wait(db)
                # The worker hears of its end.
                await asyncio.sleep(0.05)
            assert await _first_line(there) == b"HTTP/1.1 201"
            await _at_rest(worker, made)
    assert await held(db, made) == [(0, 1)]


async def test_claims_that_came_while_the_worker_stood_still_end_with_their_phones(
    db: Db, worker: Worker, signer: PassSigner
) -> None:
    made = await _made(db, worker, signer)
    async with _serving(worker) as port:
        with socket.create_connection(("127.0.0.1", port)) as there:
            with ExitStack() as phones:
                # So many that they do not wait for the end of a turn.
                gone = [
                    phones.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(_FULL_CALL + 1)
                ]
                # All are accepted. From here to the end of the stall the worker gets no turn, however short it is.
                await asyncio.sleep(0.1)
                for phone in gone:
                    phone.sendall(_as_sent(Phone.with_pass(signer, made).claim()))
            there.sendall(_as_sent(Phone.with_pass(signer, made).claim()))
            time.sleep(_STALL_SECONDS)  # noqa: ASYNC251 - a worker that is stopped
            assert await _first_line(there) == b"HTTP/1.1 201"
            await _at_rest(worker, made)
    assert await held(db, made) == [(0, 1), (0, 2)]
