"""The releases that this worker has met, each with what it takes to put claims through.

A room is entered when somebody first asks for its release, left when its epoch turns out to be over, and condemned when
nobody may use its epoch again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

import asyncpg
import structlog
from redis.exceptions import RedisError

from app.booking.gate import errors, tally
from app.booking.gate.admission import Admission
from app.booking.gate.complaints import Complaints
from app.booking.gate.database import borrowed
from app.booking.gate.ledger import Ledger, Verdict, Winner
from app.booking.gate.link import Links
from app.booking.gate.nodes import Nodes
from app.booking.gate.rebuild import Because, Census, accounted_for, read_release, rebuild, take_census
from app.booking.gate.settlement import Settlement
from app.booking.gate.state import Release
from app.core import metrics
from app.core.outages import facts_of
from app.core.problems import NotFound, jittered_ms
from app.core.settings import Settings
from app.core.tasks import Chores

log = structlog.get_logger(__name__)
_EPOCHS: Final = "SELECT id, epoch, pg_postmaster_start_time() AS since FROM release WHERE id = ANY ($1)"
# What can be the matter with the engines, or with a release's state. TimeoutError is an OSError.
OUT_OF_REACH: Final = (RedisError, OSError, errors.GateError, asyncpg.PostgresError, asyncpg.InterfaceError)

REBUILD_RETRY_MS: Final = 500
# How long a request waits for the state of a release to be found or made; a small one takes milliseconds.
_ENTER_WAIT_SECONDS: Final = 2.0
# Releases whose state this worker makes at one time: guessed ids must not take every connection from the commits.
_ENTERING_LIMIT: Final = 2
# Releases that wait for that; whoever asks for one more is told 503.
_ENTERING_QUEUE_LIMIT: Final = 100
# How long PostgreSQL may take to say whether it accounts for a state, and for how long nobody asks after it did not.
_LOOK_SECONDS: Final = 1.0
_SILENT_SECONDS: Final = 5.0
# For how long a release that does not exist is remembered as such, so that guessing ids costs PostgreSQL nothing.
_ABSENT_SECONDS: Final = 1.0
_ABSENT_LIMIT: Final = 10_000


def rebuilding_again() -> errors.Rebuilding:
    """Return the refusal of whoever comes while the state is being made: each is to come back at another moment."""
    return errors.Rebuilding(retry_after_ms=jittered_ms(REBUILD_RETRY_MS))


class Room:
    """A release in force: the links to whoever holds its state, its admission, its ledger, its settlement."""

    def __init__(
        self,
        release: Release,
        links: Links,
        database: asyncpg.Pool,
        settings: Settings,
        chores: Chores,
        see_through: "SeeThrough",
        condemn: "Callable[[Room], None]",
    ) -> None:
        self.release = release
        self.links = links
        self.admission = Admission(
            release, links, settings, chores, lambda winner: see_through(self, winner), lambda: condemn(self)
        )
        self.ledger = Ledger(release, database, settings, chores)
        self.settlement = Settlement(release, links, database, timeout_seconds=settings.commit_timeout_ms / 1000)


# Takes a claim that was admitted in a room to its verdict, in a task of its own.
SeeThrough = Callable[[Room, Winner], asyncio.Future[Verdict]]


class Rooms:
    """Finds the state of each release, or makes it; remembers it as long as it is in force."""

    def __init__(
        self, settings: Settings, nodes: Nodes, database: asyncpg.Pool, chores: Chores, see_through: SeeThrough
    ) -> None:
        self._see_through = see_through
        self._settings = settings
        self._nodes = nodes
        nodes.when_moved = self._leave_what_has_moved
        self._database = database
        self._chores = chores
        # Where this worker is in, by the bytes of the release's id, as passes name it.
        self._rooms: dict[bytes, Room] = {}
        self._entering: dict[UUID, asyncio.Task[Room]] = {}
        self._entrance = asyncio.Semaphore(_ENTERING_LIMIT)
        self._absent: dict[UUID, float] = {}
        self._condemned: dict[UUID, int] = {}
        self._complaints = Complaints()
        # Since when the PostgreSQL runs that was asked last, and whether a room was opened without asking it.
        self._postgres_since: datetime | None = None
        self._is_unsure = False
        self._asking = asyncio.Semaphore(_ENTERING_LIMIT)
        self._silent_until_seconds = 0.0

    @property
    def entered(self) -> Mapping[bytes, Room]:
        """Return the rooms that stand at any moment, by the bytes of their release's id."""
        return self._rooms

    async def room(self, release_id: UUID) -> Room:
        """Return the room of a release; the first who asks enters it for all.

        Raises `NotFound` for a release that does not exist or is not published, `Rebuilding` while its state cannot be
        had.
        """
        room = self._rooms.get(release_id.bytes)
        if room is not None:
            return room
        loop = asyncio.get_running_loop()
        if self._absent.get(release_id, 0.0) > loop.time():
            raise NotFound
        entering = self._entering.get(release_id)
        if entering is None:
            if len(self._entering) >= _ENTERING_QUEUE_LIMIT:
                raise rebuilding_again()
            entering = self._chores.start(self._enter(release_id))
            self._entering[release_id] = entering
            entering.add_done_callback(lambda _: self._entering.pop(release_id, None))
        try:
            async with asyncio.timeout(_ENTER_WAIT_SECONDS):
                # Shielded: the one who asked first may hang up; the others still want the room.
                return await asyncio.shield(entering)
        except NotFound:
            if len(self._absent) >= _ABSENT_LIMIT:
                self._absent.clear()
            self._absent[release_id] = loop.time() + _ABSENT_SECONDS
            raise
        except (errors.Rebuilding, TimeoutError):
            raise rebuilding_again() from None

    async def make_anew(self, release_id: UUID, *, after_epoch: int | None = None) -> None:
        """Rebuild a release's state, whatever stands there now; with `after_epoch`, unless a later one is in force.

        Raises `NotFound`, and the drivers' errors.
        """
        release, links = await self._rebuild(release_id, Because(after_epoch, insist=after_epoch is None))
        self._absent.pop(release_id, None)
        self._open(release, links)

    def leave(self, room: Room, *, cause: errors.FenceCause | None = None) -> None:
        """Forget a room whose epoch is not in force; whoever comes next finds the one that is.

        `cause` is why, where that is a fence that closed.
        """
        release = room.release.release_id.bytes
        if self._rooms.get(release) is room:
            del self._rooms[release]
            if cause is not None:
                metrics.FENCES.labels(cause).inc()

    def condemn(self, room: Room, *, cause: errors.FenceCause) -> None:
        """Never use this epoch again: it is over in PostgreSQL, or Redis and PostgreSQL contradict each other in it."""
        release = room.release
        if self._rooms.get(release.release_id.bytes) is room:
            # That an epoch is over is the ordinary end of one; only a contradiction is somebody's to look into.
            level = logging.ERROR if cause == "contradiction" else logging.INFO
            log.log(level, "gate_condemned", release=str(release.release_id), epoch=release.epoch, because=cause)
            self._condemned[release.release_id] = release.epoch
            self.leave(room, cause=cause)

    async def watch(self) -> None:
        """Condemn, until cancelled, the rooms whose epochs PostgreSQL has left behind.

        Whoever loses a race for a place never looks at PostgreSQL. A worker whose lines lead to an old primary that
        lives on would say "sold out" from its state for as long as they last; so it looks every so often who is right,
        and where there are several servers, which of them holds what.
        """
        interval_seconds = self._settings.sweep_interval_ms / 1_000
        while True:
            await asyncio.sleep(interval_seconds)
            self.publish()
            try:
                await self._look_around()
            except Exception as error:
                # An answer that nobody expects, a defect of ours: without the next look, it would be the last.
                if self._complaints.is_new(("look", type(error)), asyncio.get_running_loop().time()):
                    log.exception("gate_look_failed")

    async def _look_around(self) -> None:
        if not self._rooms:
            return
        with contextlib.suppress(RedisError, OSError):
            await self._nodes.look()
        rooms = tuple(self._rooms.values())
        try:
            timeout_seconds = self._settings.commit_timeout_ms / 1_000
            async with borrowed(self._database, timeout_seconds=timeout_seconds) as connection:
                rows = await connection.fetch(_EPOCHS, [room.release.release_id for room in rooms])
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            # Who cannot be asked has raised nothing that matters here: no row can be written either.
            return
        epochs: dict[UUID, int] = {row["id"]: row["epoch"] for row in rows}
        self._look_who_answers({row["since"] for row in rows}, rooms)
        for room in rooms:
            if epochs.get(room.release.release_id) != room.release.epoch:
                self.condemn(room, cause="stale_epoch")

    def _look_who_answers(self, since: set[datetime], rooms: tuple[Room, ...]) -> None:
        """Have every room entered anew where PostgreSQL was started since the last look: it may be a restored one."""
        if not since:
            return
        (started_at,) = since
        self._silent_until_seconds = 0.0
        if self._is_unsure or started_at != self._postgres_since:
            self._postgres_since, self._is_unsure = started_at, False
            for room in rooms:
                self.leave(room)

    def publish(self) -> None:
        """Publish the numbers that are counted on the way of a claim, and how many wait."""
        tally.publish()
        metrics.QUEUE.set(sum(room.admission.waiting for room in self._rooms.values()))

    async def _enter(self, release_id: UUID) -> Room:
        """Find the state in force, or make it. Where it was condemned, only a later epoch will do.

        Raises `NotFound`, and `Rebuilding` for whatever is the matter, which it has logged.
        """
        condemned = self._condemned.get(release_id)
        release = None
        try:
            links = await self._nodes.of(release_id)
            known: Census | None = None
            async with links.lend() as link:
                release = await read_release(link, release_id)
                if release is not None:
                    known = await take_census(link, release)
            # The link is given back by now: PostgreSQL may take its time, and the others need none of it.
            if release is not None and known is not None and await self._knows_more(release, known):
                metrics.FENCES.labels("contradiction").inc()
                log.error("gate_knows_more_than_postgresql", release=str(release_id), epoch=release.epoch)
                condemned = release.epoch
            if release is None or (condemned is not None and release.epoch <= condemned):
                async with self._entrance:
                    release, links = await self._rebuild(release_id, Because(condemned))
            room = self._open(release, links)
        except OUT_OF_REACH as error:
            # Here, and not for each of those who wait for it; and in an outage they come again all the time.
            if self._complaints.is_new((release_id, type(error)), asyncio.get_running_loop().time()):
                log.warning("gate_cannot_enter", release=str(release_id), **facts_of(error))
            raise rebuilding_again() from error
        self._condemned.pop(release_id, None)
        return room

    async def _knows_more(self, release: Release, known: Census) -> bool:
        """Tell whether PostgreSQL was set back since this state was built; where it is away, nobody can tell.

        Those who lose must be answered all the same, and soon. Once it is there, every room is entered anew.
        """
        loop = asyncio.get_running_loop()
        async with self._asking:
            if loop.time() >= self._silent_until_seconds:
                try:
                    is_accounted_for, since = await accounted_for(
                        self._database, release, known, timeout_seconds=_LOOK_SECONDS
                    )
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    self._silent_until_seconds = loop.time() + _SILENT_SECONDS
                else:
                    self._postgres_since = self._postgres_since or since
                    return not is_accounted_for
        self._is_unsure = True
        return False

    async def _rebuild(self, release_id: UUID, because: Because) -> tuple[Release, Links]:
        """Rebuild a state where it belongs by now; return it, and the links to whoever holds it.

        Asked anew who that is: two workers, one of them at an old primary that lives on, would otherwise build states
        in turn, each to end the other's.
        """
        links = await self._nodes.of(release_id, anew=True)
        timeout_seconds = self._settings.rebuild_timeout_seconds
        try:
            release = await rebuild(self._database, links, release_id, because, timeout_seconds=timeout_seconds)
        except OUT_OF_REACH:
            metrics.REBUILDS_FAILED.inc()
            raise
        log.info("gate_rebuilt", release=str(release_id), epoch=release.epoch)
        return release, links

    def _leave_what_has_moved(self) -> None:
        for room in tuple(self._rooms.values()):
            if self._nodes.at(room.release.release_id) is not room.links:
                self.leave(room, cause="other_server")

    def _open(self, release: Release, links: Links) -> Room:
        """Open a room. Raises `NotInForce` where its release has moved while its state was looked at, or made."""
        if self._nodes.at(release.release_id) is not links:
            raise errors.NotInForce(errors.HELD_ELSEWHERE)
        room = self._rooms[release.release_id.bytes] = Room(
            release,
            links,
            self._database,
            self._settings,
            self._chores,
            self._see_through,
            partial(self.condemn, cause="contradiction"),
        )
        return room
