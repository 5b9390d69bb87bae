"""The gate's counter: takes a request as method, path, headers and body, and gives an answer. Knows no transport.

Whatever can be checked without asking anybody is checked here, in memory, before a claim joins the queue.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
import structlog

from app.booking.gate.admission import Order
from app.booking.gate.errors import GateUnreachable
from app.booking.gate.gate import Gate
from app.booking.gate.limits import AccountLimit
from app.booking.gate.orders import OrderBook, id_bytes
from app.booking.gate.outcomes import Availability, Caller, Decided, Outcome
from app.booking.gate.passes import Pass, PassSigner
from app.booking.gate.records import PoolCounts
from app.booking.gate.rooms import Room
from app.booking.gate.state import ReleaseSetup
from app.booking.gate.wire import AvailabilityView, ClaimBody, PendingView, PoolAvailability, PoolState, claim_view
from app.core.clock import iso_of_ms
from app.core.ids import id_of
from app.core.problems import (
    FieldError,
    InternalError,
    MethodNotAllowed,
    NotAuthenticated,
    NotFound,
    Problem,
    UnsupportedMediaType,
    ValidationFailed,
)
from app.core.web.documents import Answer, problem_answer
from app.core.web.strict_json import is_json

CLAIM_PATH: Final = "/v1/claims/"
RELEASE_PATH: Final = "/v1/releases/"
AVAILABILITY_SUFFIX: Final = "/availability"
JSON_MEDIA_TYPE: Final = b"application/json"
_JSON_HEADERS: Final = ((b"content-type", JSON_MEDIA_TYPE),)
# More releases than a town has open at once. One that is asked for beyond them takes the place of the stalest answer.
_POLLS_MAX: Final = 256

log = structlog.get_logger(__name__)


class Request:
    """A request, as every transport can give it: of its headers only what the gate reads.

    `request_id` names it in problems and in the log; the transport sends it back.
    """

    __slots__ = (
        "accept_language",
        "authorization",
        "body",
        "content_type",
        "if_none_match",
        "method",
        "path",
        "request_id",
    )

    def __init__(
        self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes = b"", request_id: str = ""
    ) -> None:
        """Take what is read of the headers, whose names are lower case."""
        self.method = method
        self.path = path
        self.body = body
        self.request_id = request_id
        self.authorization = headers.get(b"authorization", b"")
        self.content_type = headers.get(b"content-type")
        self.accept_language = headers.get(b"accept-language")
        self.if_none_match = headers.get(b"if-none-match")

    def has_hung_up(self) -> bool:
        """Tell whether whoever asked is known to wait no more. The transport that can know says so."""
        return False


# Takes the answer to a request: once, and must not raise.
Reply = Callable[[Answer], None]


_encode = msgspec.json.Encoder().encode


class _Poll(NamedTuple):
    """An availability answer that is repeated for a moment."""

    until_ms: int
    etag: bytes
    whole: Answer
    unchanged: Answer

    def answer(self, request: Request) -> Answer:
        """Return the answer to one who asks, who may have it already."""
        asked = request.if_none_match
        if asked is not None and (self.etag in asked or asked.strip() == b"*"):
            return self.unchanged
        return self.whole


class Desk:
    """Answers the requests that the gate answers, and no others (see `is_mine`)."""

    def __init__(self, gate: Gate, signer: PassSigner) -> None:
        self._gate = gate
        self._signer = signer
        self.body_limit_bytes = gate.settings.body_limit_bytes
        self._orders = OrderBook(gate.settings)
        # Counted apart: who asks what became of a claim takes nothing from the claims.
        self._claims = AccountLimit("claims", gate.settings.claim_rate_per_second)
        self._questions = AccountLimit("questions", gate.settings.claim_rate_per_second)
        # By the release's id as everybody writes it, the stalest first.
        self._polls: dict[str, _Poll] = {}
        self._asking: dict[UUID, asyncio.Task[_Poll]] = {}
        # The claims of this tick.
        self._handed_in: list[tuple[Request, Reply]] = []

    @staticmethod
    def is_mine(method: str, path: str, authorization: bytes) -> bool:
        """Say whether the gate answers this request. Everything else is for the application behind it."""
        if path.startswith(CLAIM_PATH):
            if method in {"GET", "HEAD"}:
                return authorization[:5].lower() == b"pass "
            return method != "DELETE"
        return path.startswith(RELEASE_PATH) and path.endswith(AVAILABILITY_SUFFIX)

    async def answer(self, request: Request) -> Answer:
        """Answer a request. Never raises: what goes wrong is an answer too."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.take(request, lambda answer: None if answered.done() else answered.set_result(answer))
        return await answered

    def take(self, request: Request, reply: Reply) -> None:
        """Answer a request by calling `reply`: before this returns, or later. Never raises.

        What needs nobody's word is answered at once. Claims are seen to at the end of the tick, all together; only what
        is rare, or was admitted, gets a task of its own.
        """
        if request.method == "PUT" and request.path.startswith(CLAIM_PATH):
            self._handed_in.append((request, reply))
            if len(self._handed_in) == 1:
                asyncio.get_running_loop().call_soon(self._see_to_claims_soon)
            return
        try:
            if not request.path.startswith(CLAIM_PATH):
                self._availability(request, reply)
            elif request.method in {"GET", "HEAD"}:
                self._later(self._get_claim(request), request, reply)
            else:
                raise MethodNotAllowed(headers={"Allow": "DELETE, GET, HEAD, PUT"})  # noqa: TRY301 - told below
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, the phone must hear of it
            reply(_failed(error, request))

    def _later(self, answering: Coroutine[None, None, Answer], request: Request, reply: Reply) -> None:
        def came(task: asyncio.Task[Answer]) -> None:
            # Ended with the worker, it leaves its phone with a word, too.
            error = GateUnreachable() if task.cancelled() else task.exception()
            reply(task.result() if error is None else _failed(error, request))

        self._gate.background.start(answering).add_done_callback(came)

    def _see_to_claims_soon(self) -> None:
        """Let one more turn pass before the claims of this tick are seen to.

        A loop reads what a phone has sent in one turn, and that the phone is gone in the next. Where a worker stood
        still (stopped, or busy with one thing), many are gone by the time their claims are read.
        """
        handed_in, self._handed_in = self._handed_in, []
        asyncio.get_running_loop().call_soon(self._see_to_claims, handed_in)

    def _see_to_claims(self, handed_in: list[tuple[Request, Reply]]) -> None:
        """Take the claims of this tick to the gate, one step after the other for all of them.

        Not one claim after the other: the code of all the steps does not fit into a processor's first cache, and would
        be fetched anew for each claim. At a hundred claims a tick this halves what a claim costs.
        """
        now_ms = self._gate.clock.now_ms()
        passed: list[tuple[Request, Reply, Pass]] = []
        verify, count = self._signer.verify, self._claims.count
        for request, reply in handed_in:
            try:
                if request.content_type != JSON_MEDIA_TYPE and request.body:
                    _require_json(request)
                contents = verify(_pass_text(request))
                count(contents.account, now_ms)
                passed.append((request, reply, contents))
            except Exception as error:  # noqa: BLE001 - as in `take`
                reply(_failed(error, request))
        ordered: list[tuple[Request, Reply, Room, Order]] = []
        for request, reply, contents in passed:
            try:
                claim_id = _claim_id_in(request.path)
                room = self._gate.entered.get(contents.release)
                order = None if room is None else self._orders.quickly(claim_id, request.body, contents, room.release)
                if room is None or order is None:
                    # As rare as a fault in a claim, or the first claim to a release.
                    self._put_carefully(claim_id, contents, room, request, reply)
                else:
                    ordered.append((request, reply, room, order))
            except Exception as error:  # noqa: BLE001 - as in `take`
                reply(_failed(error, request))
        for request, reply, room, order in ordered:
            self._put(room, order, request, reply)

    def _put_carefully(
        self, claim_id: bytes, contents: Pass, room: Room | None, request: Request, reply: Reply
    ) -> None:
        claim = self._orders.read(request.body, contents)
        if room is None:
            self._later(self._put_claim_later(claim_id, claim, contents, request), request, reply)
        else:
            self._put(
                room, self._orders.carefully(claim_id, claim, request.body, contents, room.release), request, reply
            )

    def _put(self, room: Room, order: Order, request: Request, reply: Reply) -> None:
        try:
            self._gate.put(room, order, Caller(partial(_tell, reply, order.claim_id, request), request.has_hung_up))
        except Exception as error:  # noqa: BLE001 - as in `take`
            reply(_failed(error, request))

    async def _put_claim_later(self, claim_id: bytes, claim: ClaimBody, contents: Pass, request: Request) -> Answer:
        release = await self._gate.release(claim.release)
        order = self._orders.carefully(claim_id, claim, request.body, contents, release)
        return _outcome(claim_id, await self._gate.claim(claim.release, order, request.has_hung_up), request)

    async def _get_claim(self, request: Request) -> Answer:
        claim_id = _id_in_path(request.path[len(CLAIM_PATH) :], "claim_id")
        contents = self._signer.verify(_pass_text(request))
        self._questions.count(contents.account, self._gate.clock.now_ms())
        known = await self._gate.known_claim(id_of(contents.release), claim_id, contents.account)
        return _outcome(claim_id.bytes, known, request)

    def _availability(self, request: Request, reply: Reply) -> None:
        if request.method not in {"GET", "HEAD"}:
            raise MethodNotAllowed(headers={"Allow": "GET, HEAD"})
        text = request.path[len(RELEASE_PATH) : -len(AVAILABILITY_SUFFIX)]
        poll = self._polls.get(text)
        if poll is None:
            # Not asked for yet, or written in another way.
            text = str(_id_in_path(text, "release_id"))
            poll = self._polls.get(text)
        if poll is None or poll.until_ms <= self._gate.clock.now_ms():
            self._later(self._availability_later(UUID(text), request), request, reply)
        else:
            reply(poll.answer(request))

    async def _availability_later(self, release_id: UUID, request: Request) -> Answer:
        return (await self._fresh_poll(release_id)).answer(request)

    async def _fresh_poll(self, release_id: UUID) -> _Poll:
        """Ask Redis once for all who ask at this moment: pollers must not take the links from the claims."""
        asking = self._asking.get(release_id)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._ask(release_id))
            self._asking[release_id] = asking
            asking.add_done_callback(lambda _: self._asking.pop(release_id, None))
        return await asyncio.shield(asking)

    async def _ask(self, release_id: UUID) -> _Poll:
        seen = await self._gate.availability(release_id)
        until_ms = self._gate.clock.now_ms() + self._gate.settings.availability_age_ms
        poll = _poll_of(seen, until_ms)
        text = str(release_id)
        self._polls.pop(text, None)
        if len(self._polls) >= _POLLS_MAX:
            del self._polls[next(iter(self._polls))]
        self._polls[text] = poll
        return poll


def _id_in_path(text: str, field: str) -> UUID:
    if not text or "/" in text:
        # Some other path, below ours.
        raise NotFound
    try:
        # Not UUID(), which takes braces, "urn:uuid:" and hyphens anywhere.
        return msgspec.convert(text, UUID)
    except msgspec.ValidationError:
        raise ValidationFailed(errors=[FieldError(field, "bad_format")]) from None


def _claim_id_in(path: str) -> bytes:
    text = path[len(CLAIM_PATH) :]
    return id_bytes(text) or _id_in_path(text, "claim_id").bytes


def _require_json(request: Request) -> None:
    if not is_json((request.content_type or b"").decode("latin-1")):
        raise UnsupportedMediaType


def _pass_text(request: Request) -> bytes:
    authorization = request.authorization
    if authorization[:5].lower() != b"pass " or not (text := authorization[5:].strip()):
        raise NotAuthenticated(
            "Send the pass of this release: Authorization: Pass <pass>.",
            "请携带本次放号的报名凭证：Authorization: Pass <凭证>。",
            headers={"WWW-Authenticate": "Pass"},
        )
    return text


def _json_answer(status: int, document: object) -> Answer:
    return Answer(status, _JSON_HEADERS, _encode(document))


def _tell(reply: Reply, claim_id: bytes, request: Request, outcome: Outcome) -> None:
    reply(_outcome(claim_id, outcome, request))


def _outcome(claim_id: bytes, outcome: Outcome, request: Request) -> Answer:
    """Return the answer that tells what came of a claim. Never raises: whoever calls has nobody else to tell."""
    try:
        # The commonest first.
        if isinstance(outcome, Problem):
            return problem_answer(outcome, accept_language=request.accept_language, request_id=request.request_id)
        if isinstance(outcome, Decided):
            return decided_answer(outcome)
        return _json_answer(202, PendingView(id_of(claim_id), outcome.retry_after_ms))
    except Exception as error:  # noqa: BLE001 - the last resort, as in `take`
        return _failed(error, request)


def _failed(error: BaseException, request: Request) -> Answer:
    if not isinstance(error, Problem):
        # A defect of ours. The phone hears it in the form of every other refusal, and may try again.
        log.error("gate_failed", method=request.method, request_id=request.request_id, exc_info=error)
        error = InternalError()
    return problem_answer(error, accept_language=request.accept_language, request_id=request.request_id)


def decided_answer(decided: Decided) -> Answer:
    """Return the answer for a claim that is in PostgreSQL: 201 the first time, 200 after that, 202 while waiting."""
    view = claim_view(decided.release, decided.record)
    if view.state == "waitlisted":
        return _json_answer(202, view)
    return _json_answer(200 if decided.repeated else 201, view)


def _poll_of(seen: Availability, until_ms: int) -> _Poll:
    setup = seen.release.setup
    view = AvailabilityView(
        release=seen.release.release_id,
        as_of=iso_of_ms(seen.as_of_ms),
        version=seen.version,
        pools=[
            PoolAvailability(
                id=pool.pool_id,
                capacity=pool.counts.capacity,
                left=pool.counts.free,
                waiting=pool.counts.waiting,
                state=_pool_state(setup, seen.as_of_ms, pool.counts),
            )
            for pool in seen.pools
        ],
    )
    # The states depend on the hour too, not only on the counts.
    phase = (seen.as_of_ms >= setup.opens_ms) + (seen.as_of_ms >= setup.closes_ms)
    etag = f'"{seen.release.epoch}-{seen.version}-{phase}"'.encode()
    headers = ((b"etag", etag), (b"cache-control", b"no-cache"))
    return _Poll(until_ms, etag, Answer(200, (*headers, *_JSON_HEADERS), _encode(view)), Answer(304, headers, b""))


def _pool_state(setup: ReleaseSetup, as_of_ms: int, counts: PoolCounts) -> PoolState:
    if not counts.is_open or as_of_ms >= setup.closes_ms:
        return "closed"
    if as_of_ms < setup.opens_ms:
        return "upcoming"
    if counts.free > 0 and counts.waiting == 0:
        return "open"
    # A place that is free while somebody waits is on its way to them.
    return "full" if counts.pending > 0 or counts.free > 0 else "sold_out"
