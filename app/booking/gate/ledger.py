"""Makes a "yes" durable before it is spoken: the group commit to PostgreSQL.

While one commit of a release is in flight, winners queue; the next transaction takes them all.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg
import structlog

from app.booking.gate.complaints import Complaints
from app.booking.gate.database import borrowed
from app.booking.gate.records import ClaimRecord, Status
from app.booking.gate.state import Release
from app.booking.gate.tally import WRITTEN
from app.core import metrics
from app.core.ids import id_of
from app.core.settings import Settings
from app.core.tasks import Chores

_COMMIT: Final = """
SELECT claim_id, outcome FROM commit_claims_v2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""
_VOID: Final = "SELECT claim_id, outcome FROM void_claims_v1($1, $2, $3)"
_BACKOFF_SECONDS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

log = structlog.get_logger(__name__)


class Verdict(Enum):
    """What became of a claim in PostgreSQL."""

    COMMITTED = auto()  # in, now or before
    CLASH = auto()  # one of its people would be in two places at once; the id is void
    VOID = auto()  # the id was declared void
    ELSEWHERE = auto()  # the id was used for a claim of another release; here nobody can ever be booked under it
    STALE = auto()  # the epoch is over: a rebuild has been
    CONTRADICTION = auto()  # the gate gave away what PostgreSQL says is taken
    UNKNOWN = auto()  # PostgreSQL could not be asked in time; the sweep will settle it


_VERDICTS: Final = {
    "in": Verdict.COMMITTED,
    "known": Verdict.COMMITTED,
    "void": Verdict.VOID,
    "elsewhere": Verdict.ELSEWHERE,
    "clash": Verdict.CLASH,
    "stale": Verdict.STALE,
    "person_booked": Verdict.CONTRADICTION,
    "place_taken": Verdict.CONTRADICTION,
    "differs": Verdict.CONTRADICTION,
}


class Winner(NamedTuple):
    """A claim that the script admitted, and the request as the phone made it (JSON)."""

    record: ClaimRecord
    request: str


class _Waiting(NamedTuple):
    winner: Winner
    verdict: asyncio.Future[Verdict]
    since_seconds: float


# Errors after which the transaction is certainly not in PostgreSQL: the server said so, or was never reached.
_CERTAINLY_NOT_IN: Final = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.TooManyConnectionsError,
    asyncpg.CannotConnectNowError,
)
_AGAIN_AT_ONCE: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
# Classes of SQLSTATE in which PostgreSQL refuses what it was given, and will refuse it again: cardinality, data,
# integrity, triggered change, check of a view, limit of the program, exception raised by a trigger, damaged data.
_REFUSED_CLASSES: Final = frozenset({"21", "22", "23", "27", "44", "54", "P0", "XX"})


class Ledger:
    """The way into PostgreSQL for the winners of one release in one epoch."""

    def __init__(self, release: Release, database: asyncpg.Pool, settings: Settings, chores: Chores) -> None:
        self._release = release
        self._database = database
        self._settings = settings
        self._chores = chores
        self._queue: list[_Waiting] = []
        self._pump: asyncio.Task[None] | None = None
        self._complaints = Complaints()
        # Claims that were sent, and of which no reply says whether they are in.
        self._in_doubt: set[UUID] = set()

    def commit(self, winner: Winner) -> asyncio.Future[Verdict]:
        """Join the next group commit; the future is settled once PostgreSQL has decided, or could not be asked."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(winner, future, time.monotonic()))
        if self._pump is None:
            self._pump = self._chores.start(self._run())
        return future

    async def _run(self) -> None:
        try:
            while self._queue:
                limit = self._settings.commit_batch_limit
                batch, self._queue = self._queue[:limit], self._queue[limit:]
                try:
                    await self._commit(batch)
                except Exception:
                    # A defect of ours (PostgreSQL's errors are dealt with there); those who wait must hear something.
                    log.exception("gate_commit_failed", claims=len(batch))
                    for waiting in batch:
                        self._settle(waiting, Verdict.UNKNOWN)
        finally:
            self._pump = None

    def _settle(self, waiting: _Waiting, verdict: Verdict) -> None:
        if verdict is Verdict.UNKNOWN:
            metrics.IN_DOUBT.inc()
            # For the sweep to settle.
            self._in_doubt.discard(waiting.winner.record.claim_id)
        if not waiting.verdict.done():
            waiting.verdict.set_result(verdict)

    async def _commit(self, batch: list[_Waiting]) -> None:
        """Write one batch, or give each of its claims a verdict all the same."""
        refused = 0
        attempt = 0
        while batch:
            try:
                outcomes = await self._write([waiting.winner for waiting in batch])
            except _CERTAINLY_NOT_IN as error:
                refused += isinstance(error, _AGAIN_AT_ONCE)
                if refused > self._settings.commit_retry_limit:
                    break
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                if _refuses_the_rows(error):
                    await self._commit_apart(batch, error)
                    return
                # The reply was lost, or the server never reached: it may be in. Writing again is harmless, because
                # the first writer of a claim id decides and the same row comes to the same.
                self._in_doubt.update(waiting.winner.record.claim_id for waiting in batch)
            else:
                batch = self._deliver(batch, outcomes)
                refused += len(batch)
                attempt = 0
                if refused > self._settings.commit_retry_limit:
                    break
                continue
            batch = self._give_up_on_the_old(batch)
            if batch:
                await asyncio.sleep(_BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)])
            attempt += 1
        for waiting in batch:
            self._settle(waiting, Verdict.UNKNOWN)

    async def _commit_apart(self, batch: list[_Waiting], error: Exception) -> None:
        """Commit by halves what PostgreSQL refuses together, so that a claim it cannot take holds up no other."""
        if len(batch) > 1:
            half = len(batch) // 2
            await self._commit(batch[:half])
            await self._commit(batch[half:])
            return
        (waiting,) = batch
        claim_id = waiting.winner.record.claim_id
        if self._complaints.is_new(claim_id, time.monotonic()):
            # Nothing personal: neither PostgreSQL's message nor the values.
            sqlstate = getattr(error, "sqlstate", None)
            log.error("gate_claim_refused", claim=str(claim_id), error=type(error).__name__, sqlstate=sqlstate)
        self._settle(waiting, await self._given_up(claim_id))

    async def _given_up(self, claim_id: UUID) -> Verdict:
        """Write the tombstone of a claim that PostgreSQL refuses, and return what that comes to.

        The refusal is certain, but it is ours: another worker may have written the same claim, or be about to.
        """
        timeout_seconds = self._settings.commit_timeout_ms / 1000
        try:
            outcomes = await void_claims(self._database, self._release, [claim_id], timeout_seconds=timeout_seconds)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            return Verdict.UNKNOWN
        return _VERDICTS[outcomes[claim_id]]

    def _deliver(self, batch: list[_Waiting], outcomes: dict[UUID, str]) -> list[_Waiting]:
        """Tell each claim its verdict; return the one to send next of those that collided with one that was undone."""
        again: list[_Waiting] = []
        if self._in_doubt:
            self._count_settled(outcomes)
        for waiting in batch:
            outcome = outcomes[waiting.winner.record.claim_id]
            WRITTEN[outcome] += 1
            if outcome == "again":
                again.append(waiting)
            else:
                self._settle(waiting, _VERDICTS[outcome])
        # One alone can collide only with what is committed, so it gets a verdict; then the next.
        self._queue[:0] = again[1:]
        return again[:1]

    def _count_settled(self, outcomes: Mapping[UUID, str]) -> None:
        for claim_id in self._in_doubt & outcomes.keys():
            fate = "booked" if _VERDICTS.get(outcomes[claim_id]) is Verdict.COMMITTED else "not_booked"
            metrics.IN_DOUBT_SETTLED.labels(fate).inc()
        self._in_doubt.difference_update(outcomes)

    def _give_up_on_the_old(self, batch: list[_Waiting]) -> list[_Waiting]:
        """Leave to the sweep what has waited past its deadline there."""
        deadline = time.monotonic() - self._settings.pending_deadline_ms / 1000
        young = [waiting for waiting in batch if waiting.since_seconds > deadline]
        for waiting in batch:
            if waiting.since_seconds <= deadline:
                self._settle(waiting, Verdict.UNKNOWN)
        return young

    async def _write(self, winners: Sequence[Winner]) -> dict[UUID, str]:
        timeout_seconds = self._settings.commit_timeout_ms / 1000
        async with borrowed(self._database, timeout_seconds=timeout_seconds) as connection:
            rows = await connection.fetch(_COMMIT, *commit_arguments(self._release, winners))
        return {row["claim_id"]: row["outcome"] for row in rows}


def _refuses_the_rows(error: Exception) -> bool:
    """Tell whether the rows themselves are refused: then the same rows will not get in at the next try either."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate)[:2] in _REFUSED_CLASSES
    # The driver could not even write a value down, so nothing was sent.
    return isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)


def commit_arguments(release: Release, winners: Sequence[Winner]) -> tuple[object, ...]:
    """Return the arguments of `commit_claims_v2`: one array a column, claims first, then bookings."""
    records = [winner.record for winner in winners]
    bookings = [(record, position, entry) for record in records for position, entry in enumerate(record.entries)]
    return (
        release.release_id,
        release.epoch,
        [record.claim_id for record in records],
        [id_of(record.account) for record in records],
        [record.seq for record in records],
        [datetime.fromtimestamp(record.decided_ms / 1000, tz=UTC) for record in records],
        [record.fingerprint for record in records],
        [winner.request for winner in winners],
        [record.booking_id(entry) for record, _, entry in bookings],
        [record.claim_id for record, _, _ in bookings],
        [position for _, position, _ in bookings],
        [id_of(entry.person) for _, _, entry in bookings],
        [entry.ordinal for _, _, entry in bookings],
        [entry.number if entry.status is Status.CONFIRMED else None for _, _, entry in bookings],
    )


async def void_claims(
    database: asyncpg.Pool, release: Release, claim_ids: Sequence[UUID], *, timeout_seconds: float
) -> dict[UUID, str]:
    """Settle claims whose fate is unknown, by insert: `void`, `known` or `stale` for each (see void_claims_v1)."""
    async with borrowed(database, timeout_seconds=timeout_seconds) as connection:
        rows = await connection.fetch(_VOID, release.release_id, release.epoch, list(claim_ids))
    return {row["claim_id"]: row["outcome"] for row in rows}
