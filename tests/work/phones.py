"""Phones that speak HTTP in bytes to the protocol of a web worker, without a socket in between."""

import asyncio
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, NamedTuple
from uuid import UUID

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.booking.gate.desk import Desk
from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of
from app.booking.gate.protocol import DESK_STATE, GateProtocol
from tests.booking.gate.builders import FAR_FUTURE_MS, MadeRelease

# As a mini-program sends it. Its headers are read, too, whether the gate wants them or not.
_HEAD: Final = (
    "{method} {path} HTTP/1.1\r\n"
    "host: booking.example.com\r\n"
    "accept: */*\r\n"
    "accept-encoding: gzip, deflate, br\r\n"
    "accept-language: zh-CN,zh;q=0.9\r\n"
    "user-agent: Mozilla/5.0 (Linux; Android 14) MicroMessenger/8.0.49 MiniProgramEnv/android\r\n"
    "{more}\r\n"
)
# Longer than any run: a timer that goes off would be work of its own.
_KEEP_ALIVE_SECONDS: Final = 3_600
# uvicorn makes this anew every second; here its moment never comes.
_DATE: Final = (b"date", b"Tue, 01 Dec 2026 01:00:00 GMT")


class Heard(NamedTuple):
    """An answer: its status, its body read as JSON (None where there is none), and how many bytes it was."""

    status: int
    body: Any
    size_bytes: int

    @property
    def word(self) -> str:
        """Return the state or the code that it tells; empty where it tells neither."""
        body: dict[str, Any] = self.body or {}
        return body.get("code") or body.get("state") or ""


class _Socket(asyncio.Transport):
    """What the protocol takes for its socket: gives what is written to whoever asked."""

    def __init__(self) -> None:
        super().__init__()
        self.written: bytearray = bytearray()
        self.on_answer: Callable[[], None] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data
        if self.on_answer is not None:
            self.on_answer()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        raise AssertionError("the worker hung up")


async def _nobody(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("a request of the gate went the way of ASGI")


class Door:
    """Where phones connect: one web worker's side of its sockets."""

    def __init__(self, desk: Desk) -> None:
        self._config = uvicorn.Config(
            _nobody,
            http=GateProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._state = ServerState()
        self._state.default_headers = [_DATE]
        self._app_state: dict[str, Any] = {DESK_STATE: desk}

    def connect(self) -> "Connection":
        """Connect a phone."""
        return Connection(GateProtocol(self._config, self._state, self._app_state))


class Connection:
    """One phone's connection, kept alive."""

    def __init__(self, protocol: GateProtocol) -> None:
        self._protocol = protocol
        self._socket = _Socket()
        protocol.connection_made(self._socket)

    def send(self, request: bytes, on_answer: Callable[[], None]) -> None:
        """Send a request; `on_answer` is called when its answer is written, in one piece."""
        self._socket.written.clear()
        self._socket.on_answer = on_answer
        self._protocol.data_received(request)

    def heard(self) -> Heard:
        """Read the answer."""
        written = bytes(self._socket.written)
        head, _, body = written.partition(b"\r\n\r\n")
        return Heard(int(head.split(b" ", 2)[1]), json.loads(body) if body else None, len(written))

    def hang_up(self) -> None:
        """End the connection, and its timer."""
        self._protocol.connection_lost(ConnectionResetError())


class Asking(NamedTuple):
    """A request on its way, and the connection that it takes."""

    connection: Connection
    request: bytes


class Phone:
    """A parent's phone: an account, its people, a pass for one release, a connection."""

    def __init__(
        self, connection: Connection, made: MadeRelease, signer: PassSigner, chance: Random, people: int
    ) -> None:
        self.connection = connection
        self._made = made
        self._chance = chance
        self.account = self._new_id()
        self._people = [self._new_id() for _ in range(people)]
        pools = mask_of(set(range(len(made.pools))))
        who = tuple(PassPerson(person.bytes, pools, 0) for person in self._people)
        self._pass = signer.sign(Pass.of(made.release_id, self.account, FAR_FUTURE_MS, who))

    def claim(self, choices: Sequence[int] = (0,), *, claim_id: UUID | None = None, waitlist: bool = False) -> Asking:
        """Ask for places in the first of these pools that fits everybody."""
        body = {
            "release": str(self._made.release_id),
            "people": [str(person) for person in self._people],
            "choices": [str(self._made.pools[ordinal]) for ordinal in choices],
            "together": True,
            "waitlist": waitlist,
        }
        return self._ask("PUT", f"/v1/claims/{claim_id or self._new_id()}", json.dumps(body))

    def question(self, claim_id: UUID) -> Asking:
        """Ask what became of a claim."""
        return self._ask("GET", f"/v1/claims/{claim_id}")

    def poll(self) -> Asking:
        """Ask what is left."""
        return self._ask("GET", f"/v1/releases/{self._made.release_id}/availability")

    def _ask(self, method: str, path: str, body: str = "") -> Asking:
        more = f"authorization: Pass {self._pass}\r\n"
        if body:
            more += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        return Asking(self.connection, (_HEAD.format(method=method, path=path, more=more) + body).encode())

    def _new_id(self) -> UUID:
        return UUID(int=self._chance.getrandbits(128), version=4)
