"""Drives one life over HTTP and writes down what its phone heard."""

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import Final, assert_never

import msgspec

from loadtest import wire
from loadtest.behaviour import (
    NOTHING_HEARD,
    Ask,
    Ending,
    GiveBack,
    Ground,
    Look,
    Reply,
    Rest,
    Step,
    Tap,
    Wish,
    best_of,
    live,
)
from loadtest.claim_ids import new_claim_id
from loadtest.history import History, Kind, Operation, Seat
from loadtest.http1 import Answer, Network, NoAnswerError, NoConnectionError, Phone
from loadtest.plan import parent_rng
from loadtest.prepare import Parent, retry_after_seconds

_REQUEST_SECONDS: Final = 10.0
_PROBLEM: Final = 400


@dataclass(slots=True)
class Rush:
    """What the phones of one rush share: the clock, the end, and what they wrote down."""

    network: Network
    release_id: str
    pools: tuple[str, ...]
    seed: int
    # perf_counter at the opening second of the server's clock.
    opening_at: float
    # The same second by the calendar, to read the server's own times against.
    opens_at_epoch_seconds: float
    history: History
    is_over: bool = False
    # Parents who had their answer and stay for what comes back, with the pools open to them.
    staying: dict[int, frozenset[str]] = field(default_factory=dict[int, frozenset[str]])
    # Places promised and not given back, by claim.
    held: dict[str, int] = field(default_factory=dict[str, int])
    waiting: set[str] = field(default_factory=set[str])
    refusals: dict[str, int] = field(default_factory=dict[str, int])
    gave_back_at: float = 0.0

    def now(self) -> float:
        """Seconds since the opening."""
        return time.perf_counter() - self.opening_at


class Heard(msgspec.Struct, frozen=True, gc=False):
    """One answer, read: what the parent understands of it and what goes on record."""

    reply: Reply
    outcome: str
    body: wire.ClaimBody


_EMPTY_BODY: Final = wire.ClaimBody()


def read_answer(answer: Answer) -> Heard:
    """Read an answer about a claim. A body that cannot be read is on record as `unreadable`."""
    if answer.status == 204 or not answer.body:  # noqa: PLR2004 - RFC 9110: no content
        return Heard(Reply(answer.status), str(answer.status), _EMPTY_BODY)
    try:
        body = wire.claim_decoder.decode(answer.body)
    except msgspec.DecodeError:
        return Heard(Reply(answer.status, "unreadable"), "unreadable", _EMPTY_BODY)
    after = retry_after_seconds(answer) if body.retry_after_ms is None else body.retry_after_ms / 1000.0
    reply = Reply(answer.status, body.code, body.state, body.final is True, after)
    return Heard(reply, body.code or body.state or str(answer.status), body)


def seats_of(body: wire.ClaimBody) -> tuple[Seat, ...]:
    """Take the bookings out of an answer."""
    return tuple(Seat(b.person, b.pool, b.place_no, b.status, b.position) for b in body.bookings)


class Caller:
    """One parent with a phone (two, for the moment of a double tap)."""

    def __init__(self, rush: Rush, parent: Parent) -> None:
        self._rush = rush
        self.parent = parent
        self.phone = Phone(rush.network, limit_seconds=_REQUEST_SECONDS)
        self.second_phone = Phone(rush.network, limit_seconds=_REQUEST_SECONDS) if parent.plan.double_taps else None
        self._pass_headers = {"Authorization": f"Pass {parent.pass_token}"}
        self._bearer_headers = {"Authorization": f"Bearer {parent.access_token}"}
        # When the parent meant to act; every life begins with a rest, which sets it.
        self._due_s = -math.inf

        self._claim_bytes = b""

    async def connect(self) -> None:
        """Open the lines before the opening. Raises `NoConnectionError`."""
        await self.phone.connect()
        if self.second_phone is not None:
            await self.second_phone.connect()

    async def live(self) -> Ending:
        """Play the parent's whole evening; the record is in the rush's history."""
        rush = self._rush
        number = self.parent.plan.number

        def stays_on(pools: frozenset[str]) -> None:
            rush.staying[number] = pools

        ground = Ground(
            people=self.parent.people,
            eligible=self.parent.eligible,
            pools=rush.pools,
            now=rush.now,
            is_over=lambda: rush.is_over,
            new_claim_id=new_claim_id,
            stays_on=stays_on,
        )
        life = live(self.parent.plan, ground, parent_rng(rush.seed, number, "life"))
        try:
            step = next(life)
            while True:
                reply = await self._do(step)
                step = life.send(reply)
        except StopIteration as end:
            ending = end.value
            assert isinstance(ending, Ending)  # noqa: S101 - the generator's return type, lost by StopIteration
            return ending
        finally:
            life.close()

    async def _do(self, step: Step) -> Reply:
        match step:
            case Rest(until):
                await self._rest(until)
                return NOTHING_HEARD
            case Look("time"):
                heard = await self._send(self.phone, Kind.TIME, "", self._compose("GET", "/v1/time"))
            case Look():
                return await self._look_at_places()
            case Tap():
                return await self._tap(step)
            case Ask(claim_id):
                message = self._compose("GET", f"/v1/claims/{claim_id}", self._pass_headers)
                heard = await self._send(self.phone, Kind.CLAIM_STATUS, claim_id, message)
                self._count(claim_id, heard)
            case GiveBack(claim_id):
                message = self._compose("DELETE", f"/v1/claims/{claim_id}", self._bearer_headers)
                heard = await self._send(self.phone, Kind.CANCEL, claim_id, message)
                if heard.reply.status in {200, 204}:
                    self._rush.held.pop(claim_id, None)
                    self._rush.gave_back_at = self._rush.now()
            case _:
                assert_never(step)
        self._due_s = self._rush.now()
        return heard.reply

    async def _rest(self, until: float) -> None:
        self._due_s = max(until, self._due_s)
        delay_seconds = until - self._rush.now()
        if delay_seconds > 0:
            await asyncio.sleep(delay_seconds)

    def _compose(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> bytes:
        return self._rush.network.compose(method, path, headers, body)

    async def _tap(self, tap: Tap) -> Reply:
        wish = tap.wish
        rush = self._rush
        if wish.claim_id not in rush.history.wishes:
            rush.history.wishes[wish.claim_id] = wish
            rush.history.senders[wish.claim_id] = self.parent.plan.number
            # Composed once, before the moment: the same claim sent again is the same bytes.
            self._claim_bytes = claim_message(rush, wish, self._pass_headers)
        message = self._claim_bytes
        if tap.at is not None:
            await self._rest(tap.at)
        if tap.copies > 1 and self.second_phone is not None:
            both = await asyncio.gather(
                self._send(self.phone, Kind.CLAIM, wish.claim_id, message),
                self._send(self.second_phone, Kind.CLAIM, wish.claim_id, message),
            )
            # The phone believes the better news; both are on record.
            self.second_phone.hang_up()
            for heard in both:
                self._count(wish.claim_id, heard)
            reply = best_of([heard.reply for heard in both])
        else:
            heard = await self._send(self.phone, Kind.CLAIM, wish.claim_id, message, tap.cut_after_seconds)
            self._count(wish.claim_id, heard)
            reply = heard.reply
        self._due_s = rush.now()
        return reply

    def _count(self, claim_id: str, heard: Heard) -> None:
        """Keep the running totals that the display shows and the end of the rush depends on."""
        rush = self._rush
        reply = heard.reply
        if reply.state == "confirmed":
            rush.held[claim_id] = sum(booking.status == "confirmed" for booking in heard.body.bookings)
            rush.waiting.discard(claim_id)
        elif reply.state == "waitlisted":
            rush.waiting.add(claim_id)
        elif reply.status >= _PROBLEM:
            rush.refusals[heard.outcome] = rush.refusals.get(heard.outcome, 0) + 1

    async def _look_at_places(self) -> Reply:
        message = self._compose("GET", f"/v1/releases/{self._rush.release_id}/availability")
        started_s = self._rush.now()
        left: dict[str, int] | None = None
        status, outcome = 0, ""
        try:
            answer = await self.phone.send(message)
        except NoAnswerError as error:
            outcome = f"no_answer_{error.reason}"
        except NoConnectionError:
            outcome = "no_connection"
        else:
            status, outcome = answer.status, str(answer.status)
            if status == 200:  # noqa: PLR2004 - RFC 9110: OK
                left = {pool.id: pool.left for pool in wire.availability_decoder.decode(answer.body).pools}
        self._record(Kind.AVAILABILITY, "", started_s, status, outcome)
        self._due_s = self._rush.now()
        return Reply(status, left=left)

    async def _send(
        self,
        phone: Phone,
        kind: Kind,
        claim_id: str,
        message: bytes,
        cut_after_seconds: float | None = None,
    ) -> Heard:
        started_s = self._rush.now()
        try:
            answer = await phone.send(message, cut_after_seconds=cut_after_seconds)
        except NoAnswerError as error:
            self._record(kind, claim_id, started_s, 0, f"no_answer_{error.reason}")
            return Heard(NOTHING_HEARD, "", _EMPTY_BODY)
        except NoConnectionError:
            self._record(kind, claim_id, started_s, 0, "no_connection")
            return Heard(NOTHING_HEARD, "", _EMPTY_BODY)
        heard = read_answer(answer)
        self._record(kind, claim_id, started_s, answer.status, heard.outcome, heard.body)
        return heard

    def _record(
        self,
        kind: Kind,
        claim_id: str,
        started_s: float,
        status: int,
        outcome: str,
        body: wire.ClaimBody = _EMPTY_BODY,
    ) -> None:
        operation = Operation(
            kind=kind,
            parent=self.parent.plan.number,
            claim=claim_id,
            due_s=min(self._due_s, started_s),
            started_s=started_s,
            ended_s=self._rush.now(),
            status=status,
            outcome=outcome,
            final=body.final is True or body.code == "sold_out",
            seq=body.seq,
            decided_at_s=None
            if body.decided_at is None
            else body.decided_at.timestamp() - self._rush.opens_at_epoch_seconds,
            seats=seats_of(body) if body.bookings else (),
        )
        self._rush.history.operations.append(operation)


def claim_body(release_id: str, wish: Wish) -> bytes:
    """Encode the body of a claim."""
    return wire.encode(
        {
            "release": release_id,
            "people": wish.people,
            "choices": wish.choices,
            "together": wish.together,
            "waitlist": wish.waitlist,
        }
    )


def claim_message(rush: Rush, wish: Wish, headers: dict[str, str]) -> bytes:
    """Compose the PUT of a claim."""
    return rush.network.compose("PUT", f"/v1/claims/{wish.claim_id}", headers, claim_body(rush.release_id, wish))
