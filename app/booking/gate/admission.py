"""Joins the claims of one tick of one release into one script call.

While a call is in flight, arrivals queue; the next call takes them all, bounded. There is no timer: an idle gate
answers the first claim at once, a busy one makes larger batches. Queue and wait are bounded, and what is known to be a
retry goes first. A claim whose phone has hung up by the time of its call is not put to the script at all.
"""

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any, Final, cast

import msgspec
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from app.booking.gate.errors import HELD_ELSEWHERE, Busy, Contradiction, NotInForce, contradiction_in
from app.booking.gate.ledger import Verdict, Winner
from app.booking.gate.link import CLAIM, OTHER_SERVER, Argument, Elsewhere, Links
from app.booking.gate.records import ClaimRecord
from app.booking.gate.state import Release, pack_ordinals
from app.booking.gate.tally import JUDGED
from app.core.ids import id_of
from app.core.problems import jittered_ms
from app.core.recent import Recent
from app.core.settings import Settings
from app.core.tasks import Chores

_HEADER: Final = struct.Struct("<Q")
_LENGTH: Final = struct.Struct("<H")
# Of an answer: its letter and its length.
_BARE_BYTES: Final = 1 + _LENGTH.size
# Of a packed claim: id, fingerprint, account, when the pass expires (ms), own delay (ms), together (1) and waitlist (2)
# in one, number of people, number of choices. The people (16 bytes each) and the choices (ordinals) follow.
HEAD: Final = struct.Struct("<16s8s16sQIBBB")
_BUSY_RETRY_MS: Final = 1_500
# Claims that are worth a call of their own while others are under way: Redis judges these while more are being read.
_FULL_CALL: Final = 48
# Calls of one release under way at once. Redis takes them one by one; more would only wait there instead of here.
_CALLS_AT_ONCE: Final = 3
# How long confirmations wait for a script call to ride on before they get one of their own.
_CONFIRM_DELAY_SECONDS: Final = 0.05
# Confirmations in one call; the rest rides on the next.
_CONFIRM_LIMIT: Final = 500
# Claim ids of which this worker knows that they were admitted: their retries go first.
_KNOWN_LIMIT: Final = 50_000

# A binary digit as a number.
_DIGITS: Final = bytes.maketrans(b"01", b"\0\1")

log = structlog.get_logger(__name__)


# Made for each claim, and never part of a cycle: the garbage collector need not look at them (`gc=False`).
class Order(msgspec.Struct, frozen=True, gc=False):
    """A claim: its id, the pools that it names, all of it packed as the script takes it (see claim.lua).

    `wanted` has bit n for the pool of ordinal n. `request` is the claim as the phone made it (JSON), which PostgreSQL
    keeps.
    """

    claim_id: bytes
    wanted: int
    packed: bytes
    request: bytes


class ScriptAnswer(msgspec.Struct, frozen=True, gc=False):
    """What the script said of one claim: its letter, what followed it, and the second by Redis's clock."""

    code: str
    detail: bytes
    now_ms: int


class Judged(msgspec.Struct, frozen=True):
    """What the script said of one claim; of one that it knows, the record; of one on its way, the verdict to come."""

    answer: ScriptAnswer
    record: ClaimRecord | None
    verdict: asyncio.Future[Verdict] | None


# Hears what came of a claim at the script: at once when the call is back, exactly once, and must not raise.
Tell = Callable[[Judged | Exception], None]
# Tells whether the phone that made a claim has hung up. Must not raise.
HasHungUp = Callable[[], bool]


class _Waiting(msgspec.Struct, frozen=True):
    order: Order
    tell: Tell
    has_hung_up: HasHungUp
    since_seconds: float


class Admission:
    """The queue before the script, for one release in one epoch.

    When the state turns out not to be in force, everybody in the queue is told so by `NotInForce`, and this object is
    done with: the gate makes a new one for the next epoch.

    `see_through` is given every claim that was admitted, at once and whether or not its phone still waits: nothing that
    happens to a request can come between script and commit. `condemn` is called where the script met a contradiction,
    which it may do in a call with which nobody waits.
    """

    def __init__(
        self,
        release: Release,
        links: Links,
        settings: Settings,
        background: Chores,
        see_through: Callable[[Winner], asyncio.Future[Verdict]],
        condemn: Callable[[], None],
    ) -> None:
        self.release = release
        self._links = links
        self._background = background
        self._settings = settings
        self._see_through = see_through
        self._condemn = condemn
        self._queue: deque[_Waiting] = deque()
        self._retries: deque[_Waiting] = deque()
        self._confirmed: deque[bytes] = deque()
        self._known: Recent[bytes, bool] = Recent(_KNOWN_LIMIT)
        self._under_way = 0
        self._is_due = False
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._confirm_timer: asyncio.TimerHandle | None = None

    def put(self, order: Order, tell: Tell, has_hung_up: HasHungUp) -> None:
        """Put a claim to the script, and tell what it said.

        Told besides: `Busy` where the wait was too long or the phone has hung up before it was over, `NotInForce` or
        `Contradiction` where the state cannot be used, and redis's errors where the call failed (the claim may or may
        not have been counted). Raises `Busy`, and tells nothing, when the queue is full.
        """
        waiting = len(self._queue) + len(self._retries)
        is_retry = self._known.get(order.claim_id) is not None
        # A retry may find room when newcomers do not, but not without bound: an outage makes everybody a retry.
        limit = self._settings.admission_queue_limit * (2 if is_retry else 1)
        if waiting >= limit:
            raise _busy()
        (self._retries if is_retry else self._queue).append(_Waiting(order, tell, has_hung_up, time.monotonic()))
        # Most come to a queue that is to be sent already, or after the calls that are under way.
        if waiting + 1 >= _FULL_CALL if self._under_way or self._is_due else True:
            self._send_soon()

    async def admit(self, order: Order, has_hung_up: HasHungUp) -> Judged | Exception:
        """Do the same for somebody who waits here. Raises `Busy` when the queue is full."""
        told: asyncio.Future[Judged | Exception] = asyncio.get_running_loop().create_future()
        self.put(order, lambda outcome: None if told.done() else told.set_result(outcome), has_hung_up)
        return await told

    def confirm(self, claim_id: bytes) -> None:
        """Tell the gate, with the next call, that this claim is in PostgreSQL. Nobody waits for it."""
        self._confirmed.append(claim_id)
        if self._confirm_timer is None:
            loop = asyncio.get_running_loop()
            self._confirm_timer = loop.call_later(_CONFIRM_DELAY_SECONDS, self._confirm_alone)

    @property
    def waiting(self) -> int:
        """Return how many claims wait for the script."""
        return len(self._queue) + len(self._retries)

    async def drained(self) -> None:
        """Wait until nobody is in the queue or in the script."""
        await self._at_rest.wait()

    def _confirm_alone(self) -> None:
        self._confirm_timer = None
        self._send_soon()

    def _send_soon(self) -> None:
        """See to it that what waits is sent: now if it fills a call, else at this tick's end, or after the call."""
        waiting = len(self._queue) + len(self._retries)
        while waiting >= _FULL_CALL and self._under_way < _CALLS_AT_ONCE:
            self._send()
            waiting = len(self._queue) + len(self._retries)
        if (waiting or self._confirmed) and self._under_way == 0 and not self._is_due:
            self._is_due = True
            self._at_rest.clear()
            asyncio.get_running_loop().call_soon(self._send_what_is_due)

    def _send_what_is_due(self) -> None:
        self._is_due = False
        self._send()
        if self._under_way == 0:
            self._rest_or_send()

    def _rest_or_send(self) -> None:
        self._send_soon()
        if self._under_way == 0 and not self._is_due:
            self._at_rest.set()

    def _next_batch(self) -> list[_Waiting]:
        """Take the next claims out of the queues, and send away those that have waited too long, or wait no more.

        Who hung up may have sent the same claim again, and have heard "sold out" for good: judged now, this copy could
        get what has come back since. And a place that nobody is told of is not to be held from those who still wait.

        Only here, so that nobody hears "busy" whose claim is in the script already. The queues are in order of arrival,
        so one call, which has a time-out of its own, is all that anybody can wait beyond the limit.
        """
        too_old_seconds = time.monotonic() - self._settings.admission_wait_ms / 1000
        batch: list[_Waiting] = []
        for queue in (self._retries, self._queue):
            while queue and (len(batch) < self._settings.batch_limit or queue[0].since_seconds < too_old_seconds):
                waiting = queue.popleft()
                if waiting.since_seconds < too_old_seconds or waiting.has_hung_up():
                    _tell(waiting, _busy())
                else:
                    batch.append(waiting)
        return batch

    def _send(self) -> None:
        """Send a call with the next claims, and with the confirmations that ride along."""
        batch = self._next_batch()
        confirmed = [self._confirmed.popleft() for _ in range(min(len(self._confirmed), _CONFIRM_LIMIT))]
        if not (batch or confirmed):
            return
        self._under_way += 1
        self._at_rest.clear()
        link = self._links.claims
        try:
            call = link.post([CLAIM.call(*self._arguments(link.identity, batch, confirmed))])
        except Exception:  # noqa: BLE001 - nothing was sent: what is more than a link that is down is met again, and told
            self._send_later(batch, confirmed)
        else:
            call.add_done_callback(partial(self._came_back, batch, confirmed))

    def _came_back(self, batch: list[_Waiting], confirmed: list[bytes], call: "asyncio.Future[list[Any]]") -> None:
        reply: object
        if call.cancelled():
            # The worker ends, and did not wait any longer.
            reply = RedisConnectionError("given up")
        else:
            failure = call.exception()
            reply = failure if failure is not None else call.result()[0]
        if isinstance(reply, NoScriptError):
            # Nothing was run: load it and send the same again.
            self._send_later(batch, confirmed)
            return
        try:
            answers = self._answers_in(reply, len(batch))
        except Exception as error:  # noqa: BLE001 - whatever it is, each of those who wait must hear of it
            self._fail(batch, error)
        else:
            self._deliver(batch, answers)
        self._under_way -= 1
        self._rest_or_send()

    def _answers_in(self, reply: object, count: int) -> list[ScriptAnswer]:
        if isinstance(reply, RedisError) or reply == OTHER_SERVER:
            # Who answers here may be another by now: the next call looks again.
            self._links.claims.cut()
        if isinstance(reply, Elsewhere):
            raise NotInForce(HELD_ELSEWHERE)
        if isinstance(reply, ResponseError):
            raise contradiction_in(reply) or reply
        if isinstance(reply, BaseException):
            raise reply
        return parse_answers(cast("bytes", reply), count)

    def _send_later(self, batch: list[_Waiting], confirmed: list[bytes]) -> None:
        """Send a call on a link that is not up, or to a server that does not know the script."""

        async def send() -> list[object]:
            try:
                link = self._links.claims
                await link.connect()
                _send_away_who_hung_up(batch)
                return [await link.run(CLAIM, *self._arguments(link.identity, batch, confirmed))]
            except Exception as error:  # noqa: BLE001 - told like the error of any call
                return [error]

        self._background.start(send()).add_done_callback(partial(self._came_back, batch, confirmed))

    def _deliver(self, batch: list[_Waiting], answers: list[ScriptAnswer]) -> None:
        judged: Judged | Exception | None = None
        said: ScriptAnswer | None = None
        for waiting, answer in zip(batch, answers, strict=True):
            if answer is said and judged is not None:
                # The same word as to the one before.
                _tell(waiting, judged)
                continue
            said = answer
            try:
                judged = self._admitted(waiting, answer) if answer.code in "TWKP" else Judged(answer, None, None)
            except Exception as error:  # noqa: BLE001 - an answer that cannot be read must not cost the others theirs
                judged = error
            _tell(waiting, judged)

    def _admitted(self, waiting: _Waiting, answer: ScriptAnswer) -> Judged:
        """Send an admitted claim on its way to a verdict, unless it has one."""
        claim_id = waiting.order.claim_id
        self._known.put(claim_id, True)  # noqa: FBT003 - a set, bounded
        record = ClaimRecord.unpack(id_of(claim_id), answer.detail)
        verdict = None if answer.code == "K" else self._see_through(Winner(record, waiting.order.request.decode()))
        return Judged(answer, record, verdict)

    def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        # One line for the whole batch: nothing on the way to a "no" may log by itself.
        log.warning(
            "gate_script_failed", release=str(self.release.release_id), claims=len(batch), error=type(error).__name__
        )
        everyone = batch
        if isinstance(error, Contradiction):
            self._condemn()
        if isinstance(error, NotInForce | Contradiction):
            # The rest of the queue would meet the same state.
            everyone = [*batch, *self._retries, *self._queue]
            self._retries.clear()
            self._queue.clear()
            self._confirmed.clear()
        for waiting in everyone:
            # It may have been counted, so its retry goes first.
            self._known.put(waiting.order.claim_id, True)  # noqa: FBT003 - a set, bounded
            _tell(waiting, error)

    def _arguments(
        self, identity: str, batch: list[_Waiting], confirmed: list[bytes]
    ) -> tuple[list[str], list[Argument]]:
        release = self.release
        keys = release.keys
        wanted = 0
        for waiting in batch:
            wanted |= waiting.order.wanted
        # Its digits from the lowest on, as numbers. In a large release each call names most pools.
        chosen = bin(wanted)[:1:-1].encode().translate(_DIGITS)
        ordinals = list(compress(range(len(chosen)), chosen))
        names = [keys.meta, keys.pools, keys.claims, keys.people, keys.accounts, keys.pending]
        names.extend(compress(release.free_maps, chosen))
        return names, [
            identity,
            release.epoch,
            self._settings.pending_deadline_ms,
            pack_ordinals(ordinals),
            b"".join(confirmed),
            b"".join([waiting.order.packed for waiting in batch]),
        ]


def _busy() -> Busy:
    return Busy(retry_after_ms=jittered_ms(_BUSY_RETRY_MS))


def _send_away_who_hung_up(batch: list[_Waiting]) -> None:
    """Take out of a batch, which was to be sent before, those who have hung up since."""
    for waiting in [waiting for waiting in batch if waiting.has_hung_up()]:
        batch.remove(waiting)
        _tell(waiting, _busy())


def _tell(waiting: _Waiting, outcome: Judged | Exception) -> None:
    try:
        waiting.tell(outcome)
    except Exception:
        # A defect of ours must cost one answer, not those of the whole batch.
        log.exception("gate_answer_failed")


def parse_answers(reply: bytes, count: int) -> list[ScriptAnswer]:
    """Read the one string that claim.lua returns.

    Raises `NotInForce` when it says that the state cannot be used.
    """
    if reply[:1] != b"O":
        raise NotInForce(reply.decode())
    (now_ms,) = _HEADER.unpack_from(reply, 1)
    at = 1 + _HEADER.size
    # Of one letter without anything more, as most are, there is one answer for all.
    bare: dict[int, ScriptAnswer] = {}
    if len(reply) == at + count * _BARE_BYTES:
        letters = reply[at::_BARE_BYTES]
        for letter in set(letters):
            bare[letter] = ScriptAnswer(chr(letter), b"", now_ms)
            JUDGED[letter] += letters.count(letter)
        return list(map(bare.__getitem__, letters))
    answers: list[ScriptAnswer] = []
    for _ in range(count):
        letter = reply[at]
        JUDGED[letter] += 1
        (length,) = _LENGTH.unpack_from(reply, at + 1)
        at += _BARE_BYTES
        if length:
            answers.append(ScriptAnswer(chr(letter), reply[at : at + length], now_ms))
            at += length
        else:
            answer = bare.get(letter)
            if answer is None:
                answer = bare[letter] = ScriptAnswer(chr(letter), b"", now_ms)
            answers.append(answer)
    return answers
