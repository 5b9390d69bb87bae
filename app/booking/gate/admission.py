"""Joins the claims of one tick of one release into one script call.

While a call is in flight, arrivals queue; the next call takes them all, bounded. There is no timer: an idle gate
answers the first claim at once, a busy one makes larger batches. Queue and wait are bounded, and what is known to be a
retry goes first.
"""

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from redis.exceptions import ResponseError

from app.booking.gate.errors import Busy, Contradiction, NotInForce, contradiction_in
from app.booking.gate.ledger import Verdict, Winner
from app.booking.gate.link import CLAIM, Argument, Links
from app.booking.gate.records import ClaimRecord
from app.booking.gate.state import Release
from app.core.problems import jittered_ms
from app.core.settings import Settings

_HEADER: Final = struct.Struct("<Q")
_LENGTH: Final = struct.Struct("<H")
_CLAIM: Final = struct.Struct("<16s8s16sQIBBB")
_BUSY_RETRY_MS: Final = 1_500
# How long confirmations wait for a script call to ride on before they get one of their own.
_CONFIRM_DELAY_SECONDS: Final = 0.05
# Confirmations in one call; the rest rides on the next.
_CONFIRM_LIMIT: Final = 500
# Claim ids of which this worker knows that they were admitted: their retries go first. Oldest forgotten beyond this.
_KNOWN_LIMIT: Final = 50_000

log = structlog.get_logger(__name__)


class Order(NamedTuple):
    """A claim as the script takes it (see claim.lua). Ids are 16 bytes, times milliseconds."""

    claim_id: bytes
    fingerprint: bytes
    account: bytes
    pass_expires_ms: int
    delay_ms: int
    people: list[bytes]
    choices: list[int]
    together: bool
    waitlist: bool

    def pack(self) -> bytes:
        """Return the claim as the script reads it."""
        head = _CLAIM.pack(
            self.claim_id,
            self.fingerprint,
            self.account,
            self.pass_expires_ms,
            self.delay_ms,
            self.together | self.waitlist << 1,
            len(self.people),
            len(self.choices),
        )
        return head + b"".join(self.people) + pack_ordinals(self.choices)


def pack_ordinals(ordinals: list[int]) -> bytes:
    """Return pool ordinals as the scripts read them."""
    return struct.pack(f"<{len(ordinals)}H", *ordinals)


class ScriptAnswer(NamedTuple):
    """What the script said of one claim: its letter, what followed it, and the second by Redis's clock."""

    code: str
    detail: bytes
    now_ms: int


class Judged(NamedTuple):
    """What the script said of one claim and, where it admitted it, the way of the claim to a verdict."""

    answer: ScriptAnswer
    verdict: asyncio.Future[Verdict] | None


class _Waiting(NamedTuple):
    order: Order
    request: str
    future: asyncio.Future[Judged]
    since_seconds: float


class Admission:
    """The queue before the script, for one release in one epoch.

    When the state turns out not to be in force, everybody in the queue is told so by `NotInForce`, and this object is
    done with: the gate makes a new one for the next epoch.

    `see_through` is given every claim that was admitted, at once and whether or not its phone still waits: nothing that
    happens to a request can come between script and commit.
    """

    def __init__(
        self,
        release: Release,
        links: Links,
        settings: Settings,
        see_through: Callable[[Winner], asyncio.Future[Verdict]],
    ) -> None:
        self.release = release
        self._links = links
        self._settings = settings
        self._see_through = see_through
        self._queue: deque[_Waiting] = deque()
        self._retries: deque[_Waiting] = deque()
        self._confirmed: deque[bytes] = deque()
        self._known: dict[bytes, None] = {}
        self._pump: asyncio.Task[None] | None = None
        self._confirm_timer: asyncio.TimerHandle | None = None

    async def admit(self, order: Order, request: str) -> Judged:
        """Put a claim to the script and return what it said. `request` is the claim as the phone made it (JSON).

        Raises `Busy` when the queue is full or the wait too long, `NotInForce` or `Contradiction` when the state cannot
        be used, and redis's errors when the call failed (the claim may or may not have been counted).
        """
        waiting = len(self._queue) + len(self._retries)
        is_retry = order.claim_id in self._known
        # A retry may find room when newcomers do not, but not without bound: an outage makes everybody a retry.
        limit = self._settings.admission_queue_limit * (2 if is_retry else 1)
        if waiting >= limit:
            raise Busy(retry_after_ms=jittered_ms(_BUSY_RETRY_MS))
        future: asyncio.Future[Judged] = asyncio.get_running_loop().create_future()
        (self._retries if is_retry else self._queue).append(_Waiting(order, request, future, time.monotonic()))
        self._start_pump()
        return await future

    def confirm(self, claim_id: bytes) -> None:
        """Tell the gate, with the next call, that this claim is in PostgreSQL. Nobody waits for it."""
        self._confirmed.append(claim_id)
        if self._confirm_timer is None:
            loop = asyncio.get_running_loop()
            self._confirm_timer = loop.call_later(_CONFIRM_DELAY_SECONDS, self._confirm_alone)

    async def drained(self) -> None:
        """Wait until nobody is in the queue or in the script."""
        while self._pump is not None:
            await asyncio.wait([self._pump])

    def _confirm_alone(self) -> None:
        self._confirm_timer = None
        if self._confirmed:
            self._start_pump()

    def _start_pump(self) -> None:
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._run())

    def _next_batch(self) -> list[_Waiting]:
        """Take the next claims out of the queues, and send away those that have waited too long.

        Only here, so that nobody hears "busy" whose claim is in the script already. The queues are in order of arrival,
        so one call, which has a time-out of its own, is all that anybody can wait beyond the limit.
        """
        too_old_seconds = time.monotonic() - self._settings.admission_wait_ms / 1000
        batch: list[_Waiting] = []
        for queue in (self._retries, self._queue):
            while queue and (len(batch) < self._settings.batch_limit or queue[0].since_seconds < too_old_seconds):
                waiting = queue.popleft()
                # Whoever stopped waiting is not admitted behind their back.
                if waiting.future.done():
                    continue
                if waiting.since_seconds < too_old_seconds:
                    waiting.future.set_exception(Busy(retry_after_ms=jittered_ms(_BUSY_RETRY_MS)))
                else:
                    batch.append(waiting)
        return batch

    async def _run(self) -> None:
        try:
            while self._queue or self._retries or self._confirmed:
                batch = self._next_batch()
                confirmed = [self._confirmed.popleft() for _ in range(min(len(self._confirmed), _CONFIRM_LIMIT))]
                if not batch and not confirmed:
                    continue
                try:
                    answers = await self._call([waiting.order for waiting in batch], confirmed)
                except Exception as error:  # noqa: BLE001 - whatever it is, each of those who wait must hear of it
                    self._fail(batch, error)
                else:
                    self._deliver(batch, answers)
        finally:
            self._pump = None

    def _deliver(self, batch: list[_Waiting], answers: list[ScriptAnswer]) -> None:
        for (order, request, future, _), answer in zip(batch, answers, strict=True):
            verdict = None
            if answer.code in "TWKP":
                self._known[order.claim_id] = None
                if answer.code != "K":
                    record = ClaimRecord.unpack(UUID(bytes=order.claim_id), answer.detail)
                    verdict = self._see_through(Winner(record, request))
            if not future.done():
                future.set_result(Judged(answer, verdict))
        while len(self._known) > _KNOWN_LIMIT:
            del self._known[next(iter(self._known))]

    def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        # One line for the whole batch: nothing on the way to a "no" may log by itself.
        log.warning(
            "gate_script_failed", release=str(self.release.release_id), claims=len(batch), error=type(error).__name__
        )
        everyone = batch
        if isinstance(error, NotInForce | Contradiction):
            # The rest of the queue would meet the same state.
            everyone = [*batch, *self._retries, *self._queue]
            self._retries.clear()
            self._queue.clear()
            self._confirmed.clear()
        for order, _, future, _ in everyone:
            # It may have been counted, so its retry goes first.
            self._known[order.claim_id] = None
            if not future.done():
                future.set_exception(error)

    async def _call(self, orders: list[Order], confirmed: list[bytes]) -> list[ScriptAnswer]:
        release = self.release
        keys = release.keys
        ordinals = sorted({ordinal for order in orders for ordinal in order.choices})
        async with self._links.lend() as link:
            arguments: list[Argument] = [
                link.identity,
                release.epoch,
                self._settings.pending_deadline_ms,
                pack_ordinals(ordinals),
                b"".join(confirmed),
                b"".join([order.pack() for order in orders]),
            ]
            names = [keys.meta, keys.pools, keys.claims, keys.people, keys.accounts, keys.pending]
            names.extend(release.free_maps[ordinal] for ordinal in ordinals)
            try:
                reply = await link.run(CLAIM, names, arguments)
            except ResponseError as error:
                raise contradiction_in(error) or error from None
        return parse_answers(reply, len(orders))


def parse_answers(reply: bytes, count: int) -> list[ScriptAnswer]:
    """Read the one string that claim.lua returns.

    Raises `NotInForce` when it says that the state cannot be used.
    """
    if reply[:1] != b"O":
        raise NotInForce(reply.decode())
    (now_ms,) = _HEADER.unpack_from(reply, 1)
    at = 1 + _HEADER.size
    answers: list[ScriptAnswer] = []
    for _ in range(count):
        code = chr(reply[at])
        (length,) = _LENGTH.unpack_from(reply, at + 1)
        at += 1 + _LENGTH.size
        answers.append(ScriptAnswer(code, reply[at : at + length], now_ms))
        at += length
    return answers
