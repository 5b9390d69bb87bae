"""The gate's counter: takes a request as method, path, headers and body, and gives an answer. Knows no transport.

Whatever can be checked without asking anybody is checked here, in memory, before a claim joins the queue.
"""

import asyncio
from hashlib import blake2b
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
import structlog

from app.booking.gate.admission import Order
from app.booking.gate.errors import (
    DuplicateChoice,
    DuplicatePerson,
    NotEligible,
    PassInvalid,
    TooManyPeople,
    UnknownPool,
)
from app.booking.gate.gate import Availability, Decided, Gate, Pending
from app.booking.gate.limits import AccountLimit
from app.booking.gate.passes import Pass, PassSigner
from app.booking.gate.reading import read_claim, repeated
from app.booking.gate.records import PoolCounts
from app.booking.gate.state import Release, ReleaseSetup
from app.booking.gate.wire import AvailabilityView, ClaimBody, PendingView, PoolAvailability, PoolState, claim_view
from app.core.clock import from_ms, iso
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
JSON_MEDIA_TYPE: Final = "application/json"
_JSON_TYPE: Final = (b"content-type", JSON_MEDIA_TYPE.encode())

log = structlog.get_logger(__name__)


class Request(NamedTuple):
    """A request, as every transport can give it. Header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    # Names the request in problems and in the log; the transport sends it back.
    request_id: str = ""


_encode = msgspec.json.Encoder().encode


class _Poll(NamedTuple):
    """An availability answer that is repeated for a moment."""

    until_seconds: float
    etag: str
    body: bytes


class Desk:
    """Answers the requests that the gate answers, and no others (see `is_mine`)."""

    def __init__(self, gate: Gate, signer: PassSigner) -> None:
        self._gate = gate
        self._signer = signer
        self._people_limit = gate.settings.people_per_claim_limit
        self._choices_limit = gate.settings.choices_per_claim_limit
        # Counted apart: who asks what became of a claim takes nothing from the claims.
        self._claims = AccountLimit("claims", gate.settings.claim_rate_per_second, gate.clock.now_ms)
        self._questions = AccountLimit("questions", gate.settings.claim_rate_per_second, gate.clock.now_ms)
        self._polls: dict[UUID, _Poll] = {}
        self._asking: dict[UUID, asyncio.Task[_Poll]] = {}

    @staticmethod
    def is_mine(method: str, path: str, authorization: str) -> bool:
        """Say whether the gate answers this request. Everything else is for the application behind it."""
        if path.startswith(CLAIM_PATH):
            if method in {"GET", "HEAD"}:
                return authorization[:5].lower() == "pass "
            return method != "DELETE"
        return path.startswith(RELEASE_PATH) and path.endswith(AVAILABILITY_SUFFIX)

    async def answer(self, request: Request) -> Answer:
        """Answer a request. Never raises: what goes wrong is an answer too."""
        try:
            return await self._answer(request)
        except Problem as problem:
            return _told(problem, request)
        except Exception:
            # A defect of ours. The phone hears it in the form of every other refusal, and may try again.
            log.exception("gate_failed", method=request.method, request_id=request.request_id)
            return _told(InternalError(), request)

    async def _answer(self, request: Request) -> Answer:
        if not request.path.startswith(CLAIM_PATH):
            return await self._availability(request)
        match request.method:
            case "PUT":
                return await self._put_claim(request)
            case "GET" | "HEAD":
                return await self._get_claim(request)
            case _:
                raise MethodNotAllowed(headers={"Allow": "DELETE, GET, HEAD, PUT"})

    async def _put_claim(self, request: Request) -> Answer:
        claim_id = _id_in_path(request.path[len(CLAIM_PATH) :], "claim_id")
        media_type = request.headers.get("content-type")
        if media_type != JSON_MEDIA_TYPE and request.body and not is_json(media_type):
            raise UnsupportedMediaType
        contents = self._pass_in(request, self._claims)
        body = read_claim(request.body)
        self._check_shape(body)
        if body.release.bytes != contents.release:
            raise PassInvalid("The pass is for another release.", "该凭证属于另一次放号。")
        release = await self._gate.release(body.release)
        order = self._order(claim_id, body, contents, release)
        result = await self._gate.claim(body.release, order, request.body.decode())
        match result:
            case Pending():
                return _pending(claim_id, result)
            case Decided():
                return decided_answer(result)

    async def _get_claim(self, request: Request) -> Answer:
        claim_id = _id_in_path(request.path[len(CLAIM_PATH) :], "claim_id")
        contents = self._pass_in(request, self._questions)
        result = await self._gate.known_claim(UUID(bytes=contents.release), claim_id, contents.account)
        return _pending(claim_id, result) if isinstance(result, Pending) else decided_answer(result)

    async def _availability(self, request: Request) -> Answer:
        if request.method not in {"GET", "HEAD"}:
            raise MethodNotAllowed(headers={"Allow": "GET, HEAD"})
        release_id = _id_in_path(request.path[len(RELEASE_PATH) : -len(AVAILABILITY_SUFFIX)], "release_id")
        now_seconds = self._gate.clock.now_ms() / 1000
        poll = self._polls.get(release_id)
        if poll is None or poll.until_seconds <= now_seconds:
            poll = await self._fresh_poll(release_id)
        headers = [(b"etag", poll.etag.encode()), (b"cache-control", b"no-cache")]
        asked = request.headers.get("if-none-match", "")
        if poll.etag in asked or asked.strip() == "*":
            return Answer(304, headers, b"")
        return Answer(200, [*headers, _JSON_TYPE], poll.body)

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
        until_seconds = (self._gate.clock.now_ms() + self._gate.settings.availability_age_ms) / 1000
        poll = self._polls[release_id] = _poll_of(seen, until_seconds)
        return poll

    def _pass_in(self, request: Request, limit: AccountLimit) -> Pass:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "pass" or not text:
            raise NotAuthenticated(
                "Send the pass of this release: Authorization: Pass <pass>.",
                "请携带本次放号的报名凭证：Authorization: Pass <凭证>。",
                headers={"WWW-Authenticate": "Pass"},
            )
        contents = self._signer.verify(text.strip())
        limit.count(contents.account)
        return contents

    def _check_shape(self, body: ClaimBody) -> None:
        """Refuse lists that are empty, too long, or name the same thing twice."""
        for field, items, limit, too_long, twice in (
            ("people", body.people, self._people_limit, TooManyPeople, DuplicatePerson),
            ("choices", body.choices, self._choices_limit, ValidationFailed, DuplicateChoice),
        ):
            if not items:
                raise ValidationFailed(errors=[FieldError(field, "too_short", 1)])
            if len(items) > limit:
                raise too_long(errors=[FieldError(field, "too_long", limit)])
            if errors := repeated(field, items):
                raise twice(errors=errors)

    def _order(self, claim_id: UUID, body: ClaimBody, contents: Pass, release: Release) -> Order:
        choices: list[int] = []
        for index, pool_id in enumerate(body.choices):
            ordinal = release.ordinals.get(pool_id)
            if ordinal is None:
                raise UnknownPool(errors=[FieldError(f"choices[{index}]", "unknown_pool")])
            choices.append(ordinal)
        delay_ms = 0
        people: list[bytes] = []
        for person_id in body.people:
            person = contents.person(person_id.bytes)
            if person is None:
                raise NotEligible(
                    "The pass does not name this person.", "凭证中没有该人员。", extra={"person": str(person_id)}
                )
            for pool_id, ordinal in zip(body.choices, choices, strict=True):
                if not person.may_claim(ordinal):
                    raise NotEligible(extra={"person": str(person_id), "pool": str(pool_id)})
            delay_ms = max(delay_ms, person.delay_ms)
            people.append(person.person)
        fingerprint = blake2b(
            contents.release + contents.account + b"".join(people) + b"|" + bytes(str(choices), "ascii"),
            digest_size=8,
            person=bytes((body.together, body.waitlist)),
        ).digest()
        return Order(
            claim_id.bytes,
            fingerprint,
            contents.account,
            contents.expires_ms,
            delay_ms,
            people,
            choices,
            body.together,
            body.waitlist,
        )


def _id_in_path(text: str, field: str) -> UUID:
    if not text or "/" in text:
        # Some other path, below ours.
        raise NotFound
    try:
        # Not UUID(), which takes braces, "urn:uuid:" and hyphens anywhere.
        return msgspec.convert(text, UUID)
    except msgspec.ValidationError:
        raise ValidationFailed(errors=[FieldError(field, "bad_format")]) from None


def _json_answer(status: int, document: object) -> Answer:
    return Answer(status, [_JSON_TYPE], _encode(document))


def _told(problem: Problem, request: Request) -> Answer:
    return problem_answer(
        problem, accept_language=request.headers.get("accept-language"), request_id=request.request_id
    )


def _pending(claim_id: UUID, pending: Pending) -> Answer:
    return _json_answer(202, PendingView(claim_id, pending.retry_after_ms))


def decided_answer(decided: Decided) -> Answer:
    """Return the answer for a claim that is in PostgreSQL: 201 the first time, 200 after that, 202 while waiting."""
    view = claim_view(decided.release, decided.record)
    if view.state == "waitlisted":
        return _json_answer(202, view)
    return _json_answer(200 if decided.repeated else 201, view)


def _poll_of(seen: Availability, until_seconds: float) -> _Poll:
    setup = seen.release.setup
    view = AvailabilityView(
        release=seen.release.release_id,
        as_of=iso(from_ms(seen.as_of_ms)),
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
    return _Poll(until_seconds, f'"{seen.release.epoch}-{seen.version}-{phase}"', _encode(view))


def _pool_state(setup: ReleaseSetup, as_of_ms: int, counts: PoolCounts) -> PoolState:
    if not counts.is_open or as_of_ms >= setup.closes_ms:
        return "closed"
    if as_of_ms < setup.opens_ms:
        return "upcoming"
    if counts.free > 0 and counts.waiting == 0:
        return "open"
    # A place that is free while somebody waits is on its way to them.
    return "full" if counts.pending > 0 or counts.free > 0 else "sold_out"
