"""Claims on their way from the script to PostgreSQL, and back to Redis with the verdict, whoever still waits."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import assert_never
from uuid import UUID

import structlog
from redis.exceptions import RedisError

from app.booking.gate import errors
from app.booking.gate.ledger import Verdict, Winner
from app.booking.gate.records import ClaimRecord
from app.booking.gate.rooms import Room, Rooms
from app.core.tasks import Chores

log = structlog.get_logger(__name__)


class UnderWay:
    """Sees admitted claims through to their verdicts. Nothing that happens to a request touches it.

    By callbacks, not by a task for each: at an opening everybody who gets a place gets it within a second.
    """

    def __init__(self, chores: Chores, rooms: Callable[[], Rooms], sweep: Callable[[UUID], Awaitable[None]]) -> None:
        self._chores = chores
        self._rooms = rooms
        self._sweep = sweep
        self._decided: dict[tuple[UUID, int], asyncio.Future[Verdict]] = {}

    @property
    def verdicts(self) -> set[asyncio.Future[Verdict]]:
        """Return the verdicts that are still to come."""
        return set(self._decided.values())

    def give_up(self) -> None:
        """Leave to the sweep what is still under way; whoever waits for it hears that it was given up."""
        for decided in self.verdicts:
            decided.cancel()

    def see_through(self, room: Room, winner: Winner) -> asyncio.Future[Verdict]:
        """Take an admitted claim to PostgreSQL and the verdict to Redis; the future has it when both are done.

        A claim that is on its way already is not sent twice.
        """
        key = winner.record.claim_id, room.release.epoch
        decided = self._decided.get(key)
        if decided is None:
            decided = self._decided[key] = asyncio.get_running_loop().create_future()
            room.ledger.commit(winner).add_done_callback(partial(self._came, room, winner.record, decided))
        return decided

    def _came(
        self,
        room: Room,
        record: ClaimRecord,
        decided: asyncio.Future[Verdict],
        committing: asyncio.Future[Verdict],
    ) -> None:
        verdict = Verdict.UNKNOWN if committing.cancelled() else committing.result()

        def settle(_: object = None) -> None:
            del self._decided[record.claim_id, room.release.epoch]
            if not decided.done():
                decided.set_result(verdict)

        if verdict is Verdict.COMMITTED:
            room.admission.confirm(record.claim_id.bytes)
            settle()
        else:
            self._chores.start(self._after(room, record, verdict)).add_done_callback(settle)

    async def _after(self, room: Room, record: ClaimRecord, verdict: Verdict) -> None:
        """Bring Redis in line with a verdict that is no yes."""
        match verdict:
            case Verdict.CLASH | Verdict.VOID | Verdict.ELSEWHERE:
                # Its tombstone, or its row in another release, is committed: nobody can book under this id any more.
                try:
                    await room.settlement.release_claims([record.claim_id.bytes])
                except (errors.GateError, RedisError, OSError) as error:
                    log.warning("gate_release_left_to_sweep", error=type(error).__name__)
                else:
                    self._chores.start(self._swept(room.release.release_id))
            case Verdict.STALE | Verdict.CONTRADICTION:
                # Stale too: whoever raised the epoch may have died before putting the new state in force.
                self._rooms().condemn(room, cause="stale_epoch" if verdict is Verdict.STALE else "contradiction")
            case Verdict.COMMITTED | Verdict.UNKNOWN:
                # The first is confirmed already, the second is for the sweep to settle.
                pass
            case _:
                assert_never(verdict)

    async def _swept(self, release_id: UUID) -> None:
        await self._sweep(release_id)
