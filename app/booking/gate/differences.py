"""Finds on what Redis and PostgreSQL really disagree about a release, while claims come and go.

What is on its way differs at any instant: a claim between script and commit, a confirmation that rides on the next
call, news that is being told. None of it stays as it is, since whatever moves leaves another claim, another revision or
another count behind. So both sides are read again and again, and a difference is one only if nothing of what it rests
on has moved, on either side, for longer than several sweeps take.

Two kinds are told apart by what mends them. What is merely unfinished (a claim past its deadline, news that nobody
told, a place parked for nobody) the sweep finishes. Where the two contradict each other only a rebuild helps.
"""

import asyncio
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol
from uuid import UUID

import asyncpg

from app.booking.gate.link import Links
from app.booking.gate.records import Status
from app.booking.gate.sides import (
    DatabaseSide,
    GateSide,
    Held,
    Known,
    PoolRow,
    is_being_rebuilt,
    read_database_side,
    read_gate_side,
)
from app.core.ids import id_of
from app.core.settings import Settings

# A difference is looked at for at least so long and at least so often. A worker with many releases needs more than its
# interval for a round, and two rounds to free a place that was kept for somebody who never came.
_WATCHED_SECONDS_MIN: Final = 0.5
_SWEEPS_WATCHED: Final = 10
_READINGS_MIN: Final = 3
_BETWEEN_READINGS_SECONDS: Final = 0.25


class Mend(Enum):
    """What does away with a difference."""

    SWEEP = auto()
    REBUILD = auto()


class Difference(NamedTuple):
    """One thing on which the two disagree.

    `ordinal` is the pool that it concerns, if it is one's. `seen` is all that it rests on: where that moves, this is
    another difference.
    """

    name: str
    ordinal: int | None
    sentence: str
    mend: Mend
    seen: Hashable


class PoolFigures(NamedTuple):
    """A pool in numbers, as the one and the other has them; None where the gate has no state in force."""

    title: str
    places: int
    held: int
    waiting: int
    gate_held: int | None
    gate_free: int | None
    gate_waiting: int | None
    gate_pending: int | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of comparing. `gate_epoch` is None where Redis has no state: the next claim has it made."""

    release_id: UUID
    title: str
    epoch: int
    gate_epoch: int | None
    pools: tuple[PoolFigures, ...]
    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        """Tell whether there is no difference."""
        return not self.differences

    def to_be(self, mend: Mend) -> tuple[Difference, ...]:
        """Return the differences that this does away with."""
        return tuple(difference for difference in self.differences if difference.mend is mend)


async def compare(links: Links, database: asyncpg.Pool, release_id: UUID, settings: Settings) -> Comparison | None:
    """Compare both sides of a published release, until no difference is left or those that are left have stayed.

    None where there is no such release. Takes the time of one reading where there is no difference, and some seconds
    more where there is one. Raises the drivers' errors, and `NotInForce` where no reading could be finished.
    """
    loop = asyncio.get_running_loop()
    watched_seconds = max(_WATCHED_SECONDS_MIN, _SWEEPS_WATCHED * settings.sweep_interval_ms / 1_000)
    timeout_seconds = float(settings.rebuild_timeout_seconds)
    until_seconds = loop.time() + watched_seconds
    patience_until_seconds = loop.time() + timeout_seconds
    stayed: frozenset[Difference] | None = None
    readings = 0
    while True:
        async with links.lend() as link:
            gate = await read_gate_side(link, release_id)
        database_side = await read_database_side(database, release_id, gate, timeout_seconds=timeout_seconds)
        if database_side is None:
            return None
        found = frozenset(differences_of(gate, database_side))
        is_waiting = bool(found) and loop.time() < patience_until_seconds
        if is_waiting and await is_being_rebuilt(database, release_id, timeout_seconds=timeout_seconds):
            # Whatever differs is about to be made anew: begin again.
            stayed, readings, until_seconds = None, 0, loop.time() + watched_seconds
            await asyncio.sleep(_BETWEEN_READINGS_SECONDS)
            continue
        stayed = found if stayed is None else stayed & found
        readings += 1
        if not stayed or (readings >= _READINGS_MIN and loop.time() >= until_seconds):
            break
        await asyncio.sleep(_BETWEEN_READINGS_SECONDS)
    return Comparison(
        release_id,
        database_side.title,
        database_side.epoch,
        None if gate is None else gate.epoch,
        tuple(_figures(gate, database_side, pool) for pool in database_side.pools),
        tuple(sorted(stayed, key=_place_in_the_list)),
    )


def _place_in_the_list(difference: Difference) -> tuple[int, str, str]:
    """Return by what differences are sorted: what is about no pool first, then pool by pool."""
    return -1 if difference.ordinal is None else difference.ordinal, difference.name, difference.sentence


def differences_of(gate: GateSide | None, database: DatabaseSide) -> Iterator[Difference]:
    """Yield everything on which two readings disagree, what is on its way included."""
    if gate is None:
        # Nobody has asked for it yet, or Redis was emptied: whoever asks first has it made.
        return
    fence = _fence(gate, database)
    if fence is not None:
        # What a state says that is not in force is nobody's concern.
        yield fence
        return
    yield from _Comparing(gate, database).everything()


def _fence(gate: GateSide, database: DatabaseSide) -> Difference | None:
    """Return why nobody is judged by this state, if it is so."""
    seen = (gate.epoch, database.epoch, gate.built_on, database.built_on, gate.server)
    if gate.epoch != database.epoch:
        sentence = f"The gate is in epoch {gate.epoch}, and PostgreSQL in {database.epoch}."
    elif gate.built_on is None:
        sentence = "The gate's state is suspended: a change of the release was begun and its state not made anew."
    elif gate.built_on != gate.server:
        sentence = (
            "The gate's state was built on another server than the one that answers: a replica was promoted, or "
            "Redis was restored from a copy."
        )
    elif gate.built_on != database.built_on:
        sentence = "PostgreSQL knows the gate's state of this epoch as built on another server."
    else:
        return None
    return Difference("fence", None, sentence, Mend.REBUILD, seen)


class _Comparing:
    """One comparison of two readings of the same epoch."""

    def __init__(self, gate: GateSide, database: DatabaseSide) -> None:
        self._gate = gate
        self._database = database
        self._titles = {pool.ordinal: pool.title for pool in database.pools}
        # Claims that Redis has admitted, and of which PostgreSQL holds nothing yet: they count as held.
        self._on_the_way: dict[bytes, Known] = {}
        # What news that is still to be told will change: until then nothing can be said of it.
        self._moving_people: set[bytes] = set()
        self._moving_accounts: set[bytes] = set()
        self._moving_places: set[tuple[int, int]] = set()
        self._moving_pools: set[int] = set()

    def everything(self) -> Iterator[Difference]:
        """Yield every difference."""
        # Claims first: they say what else is moving.
        yield from list(self._claims())
        held = self._held()
        yield from self._release()
        yield from self._people(held)
        yield from self._accounts(held)
        for pool in self._database.pools:
            yield from self._pool(pool, held)

    # --- claims ----------------------------------------------------------------------------------------------

    def _claims(self) -> Iterator[Difference]:
        for claim_id in self._gate.claims.keys() | self._database.claims.keys() | self._gate.pending.keys():
            here, there = self._gate.claim(claim_id), self._database.claims.get(claim_id)
            deadline_ms = self._gate.pending.get(claim_id)
            seen = (self._gate.epoch, claim_id, here, there, deadline_ms, claim_id in self._database.void)
            for name, sentence, mend in self._claim(claim_id, here, there, deadline_ms):
                people = (there or here or Known(b"", 0, 0, 0, ())).people
                ordinal = people[0].ordinal if people else None
                yield Difference(name, ordinal, f"Claim {id_of(claim_id)}: {sentence}", mend, seen)

    def _claim(
        self, claim_id: bytes, here: Known | None, there: Known | None, deadline_ms: int | None
    ) -> Iterator[tuple[str, str, Mend]]:
        if here is None:
            if deadline_ms is not None:
                yield "claim_without_record", "it is pending in the gate, which has no record of it.", Mend.REBUILD
            if there is not None:
                sentence = f"PostgreSQL holds it ({self._said(there)}), and the gate does not know it."
                yield "claim_lost", sentence, Mend.REBUILD
            return
        if there is None:
            fate = "holds it as void" if claim_id in self._database.void else "does not hold it"
            if deadline_ms is None:
                sentence = f"the gate counts it as booked ({self._said(here)}), and PostgreSQL {fate}."
                yield "claim_extra", sentence, Mend.REBUILD
                return
            self._on_the_way[claim_id] = here
        else:
            fate = "holds it"
            yield from self._known_to_both(here, there)
        if deadline_ms is not None and deadline_ms <= self._gate.now_ms:
            sentence = (
                f"it was taken ({self._said(here)}), its deadline is past and nobody has swept it; PostgreSQL {fate}."
            )
            yield "claim_overdue", sentence, Mend.SWEEP

    def _known_to_both(self, here: Known, there: Known) -> Iterator[tuple[str, str, Mend]]:
        if here.revision < there.revision and there.told < there.revision:
            self._is_moving(here, there)
            sentence = (
                f"the gate has not heard of its latest change ({self._said(here)}; in PostgreSQL {self._said(there)})."
            )
            yield "news_untold", sentence, Mend.SWEEP
        elif here._replace(told=0) != there._replace(told=0):
            sentence = f"the gate has it as {self._said(here)}, and PostgreSQL as {self._said(there)}."
            yield "claim_differs", sentence, Mend.REBUILD

    def _is_moving(self, here: Known, there: Known) -> None:
        for known in (here, there):
            self._moving_accounts.add(known.account)
            for held in known.people:
                self._moving_people.add(held.person)
                self._moving_places.add((held.ordinal, held.place))
                self._moving_pools.add(held.ordinal)

    def _said(self, known: Known) -> str:
        """Return how a claim stands, in words."""
        parts = [
            f"{held.status.word.replace('_', ' ')}"
            + (f", place {held.place}" if held.status is Status.CONFIRMED else "")
            + f" in “{self._title(held.ordinal)}”"
            for held in known.people
        ]
        return "; ".join(parts) + f"; number {known.seq}, revision {known.revision}"

    def _title(self, ordinal: int) -> str:
        return self._titles.get(ordinal, f"pool {ordinal}")

    # --- what follows from claims ----------------------------------------------------------------------------

    def _held(self) -> "_Expected":
        """Return what the gate has to say of people, accounts and places, by PostgreSQL and what is on its way."""
        return _Expected([*self._database.claims.items(), *self._on_the_way.items()])

    def _release(self) -> Iterator[Difference]:
        if self._gate.hours_and_limits != self._database.hours_and_limits:
            seen = (self._gate.epoch, self._gate.hours_and_limits, self._database.hours_and_limits)
            sentence = "The gate has other hours or limits than PostgreSQL."
            yield Difference("release_differs", None, sentence, Mend.REBUILD, seen)

    def _people(self, expected: "_Expected") -> Iterator[Difference]:
        for person in self._gate.people.keys() | expected.booked.keys():
            here, there = self._gate.booked(person), frozenset(expected.booked.get(person, ()))
            if here != there and person not in self._moving_people:
                ordinals = {ordinal for ordinal, _, _ in here ^ there}
                sentence = (
                    f"Person {id_of(person)}: the gate has {_bookings(len(here))} of theirs, and there should be "
                    f"{len(there)}; they differ in {', '.join(f'“{self._title(o)}”' for o in sorted(ordinals))}."
                )
                seen = (self._gate.epoch, person, here, there)
                yield Difference("person_differs", min(ordinals), sentence, Mend.REBUILD, seen)

    def _accounts(self, expected: "_Expected") -> Iterator[Difference]:
        for account in self._gate.accounts.keys() | expected.of_account.keys():
            here, theirs = self._gate.accounts.get(account, 0), expected.of_account.get(account, frozenset())
            there = sum(count for _, _, count in theirs)
            if here != there and account not in self._moving_accounts:
                sentence = f"Account {id_of(account)}: the gate counts {_bookings(here)}, and there should be {there}."
                seen = (self._gate.epoch, account, here, theirs)
                yield Difference("account_differs", None, sentence, Mend.REBUILD, seen)

    def _pool(self, pool: PoolRow, expected: "_Expected") -> Iterator[Difference]:
        ordinal, gate = pool.ordinal, self._gate

        def differs(name: str, sentence: str, *seen: Hashable, mend: Mend = Mend.REBUILD) -> Difference:
            return Difference(name, ordinal, f"“{pool.title}”: {sentence}", mend, (gate.epoch, *seen))

        counts = gate.counts.get(ordinal)
        if counts is None or not gate.free_maps.get(ordinal):
            yield differs("pool_lost", "the gate has lost its counts or its map of free places.")
            return
        yield from self._places(pool, expected, differs)
        set_up = (counts.capacity, counts.waitlist_limit, counts.is_open)
        if set_up != (len(pool.places), pool.waitlist_limit, pool.is_open):
            sentence = (
                f"the gate has {counts.capacity} places, room for {counts.waitlist_limit} to wait and the pool "
                f"{'open' if counts.is_open else 'closed'}; PostgreSQL {len(pool.places)}, {pool.waitlist_limit} and "
                f"{'open' if pool.is_open else 'closed'}."
            )
            yield differs("pool_differs", sentence, set_up)
        free = int.from_bytes(gate.free_maps[ordinal], "big").bit_count()
        if counts.free != free:
            yield differs(
                "free_count", f"the gate counts {counts.free} free places, and its map has {free}.", counts, free
            )
        waiters = expected.waiting.get(ordinal, frozenset())
        if counts.waiting != len(waiters) and ordinal not in self._moving_pools:
            sentence = f"the gate counts {counts.waiting} who wait, and there should be {len(waiters)}."
            yield differs("waiting_count", sentence, counts.waiting, waiters)
        pending_places = sum(
            held.ordinal == ordinal and held.status is Status.CONFIRMED
            for claim_id in gate.pending
            if (known := gate.claim(claim_id)) is not None
            for held in known.people
        ) + sum(where == ordinal for where, _ in gate.parked)
        if counts.pending != pending_places:
            sentence = f"the gate counts {counts.pending} places on their way, and they are {pending_places}."
            yield differs("pending_count", sentence, counts, pending_places, frozenset(gate.pending), gate.parked)

    def _places(self, pool: PoolRow, expected: "_Expected", differs: "_Differs") -> Iterator[Difference]:
        gate, ordinal = self._gate, pool.ordinal
        waiters = expected.waiting.get(ordinal, frozenset())
        hands_over = bool(waiters) and pool.is_open and pool.is_to_come
        for place in sorted(pool.places | expected.held.get(ordinal, {}).keys()):
            if (ordinal, place) in self._moving_places:
                continue
            holders = expected.held.get(ordinal, {}).get(place, frozenset())
            is_free, is_parked = gate.is_free(ordinal, place), (ordinal, place) in gate.parked
            seen = (place, holders, expected.past(ordinal, place), is_free, is_parked)
            if len(holders) > 1:
                names = ", ".join(str(id_of(claim)) for claim in sorted(holders))
                yield differs("place_twice", f"the gate gave place {place} to several: {names}.", *seen)
            elif holders and (is_free or is_parked):
                (holder,) = holders
                sentence = f"place {place} is free in the gate, and claim {id_of(holder)} holds it."
                yield differs("place_free_and_held", sentence, *seen)
            elif place in pool.places and not (holders or is_free or is_parked):
                sentence = f"place {place} is not free in the gate, and nobody holds it."
                yield differs("place_leaked", sentence, *seen)
            elif is_parked and not waiters:
                sentence = f"place {place} is kept for somebody who waits, and nobody waits any more."
                yield differs("place_parked", sentence, *seen, waiters, mend=Mend.SWEEP)
            elif hands_over and (is_free or is_parked):
                sentence = f"place {place} is free, and was not handed to those who wait ({len(waiters)})."
                mend = Mend.SWEEP if is_parked else Mend.REBUILD
                yield differs("place_not_handed_over", sentence, *seen, waiters, mend=mend)
        yield from self._places_of_nobody(pool, expected, differs)

    def _places_of_nobody(self, pool: PoolRow, expected: "_Expected", differs: "_Differs") -> Iterator[Difference]:
        gate, ordinal = self._gate, pool.ordinal
        for place in _numbers_in(gate.free_maps[ordinal], but=pool.places):
            sentence = f"place {place} is free in the gate, and is none of those that it gives out."
            yield differs("place_unknown", sentence, place)
        for (where, place), count in gate.ahead.items():
            if where == ordinal and ordinal not in self._moving_pools:
                sentence = f"the gate waits for {count} more to give place {place} back, and all have."
                yield differs("place_ahead", sentence, place, count, expected.past(ordinal, place))


def _numbers_in(free_map: bytes, *, but: AbstractSet[int]) -> list[int]:
    """Return the numbers whose bits are set in a map, without these."""
    rest = bytearray(free_map)
    for number in but:
        if number >> 3 < len(rest):
            # Redis counts bits from the most significant of each byte.
            rest[number >> 3] &= ~(0x80 >> (number & 7))
    return [8 * at + bit for at, byte in enumerate(rest) if byte for bit in range(8) if byte & 0x80 >> bit]


class _Differs(Protocol):
    """Makes a difference of one pool."""

    def __call__(self, name: str, sentence: str, *seen: Hashable, mend: Mend = Mend.REBUILD) -> Difference: ...


class _Expected:
    """What the gate has to say of people, accounts and places, if these are the claims.

    Each thing comes with the claims and revisions that it rests on, so that it is another when one of them moves.
    """

    def __init__(self, claims: Iterable[tuple[bytes, Known]]) -> None:
        booked: defaultdict[bytes, set[tuple[int, int, bytes]]] = defaultdict(set)
        of_account: defaultdict[bytes, set[tuple[bytes, int, int]]] = defaultdict(set)
        held: defaultdict[int, defaultdict[int, set[bytes]]] = defaultdict(lambda: defaultdict(set))
        waiting: defaultdict[int, set[tuple[bytes, bytes]]] = defaultdict(set)
        past: defaultdict[tuple[int, int], set[tuple[bytes, int]]] = defaultdict(set)
        for claim_id, known in claims:
            live = [person for person in known.people if person.is_live]
            of_account[known.account].add((claim_id, known.revision, len(live)))
            for person in known.people:
                if person.place:
                    past[person.ordinal, person.place].add((claim_id, known.revision))
            for person in live:
                booked[person.person].add((person.ordinal, person.place, claim_id))
                if person.status is Status.CONFIRMED:
                    held[person.ordinal][person.place].add(claim_id)
                else:
                    waiting[person.ordinal].add((claim_id, person.person))
        self.booked: Mapping[bytes, set[tuple[int, int, bytes]]] = booked
        self.of_account = {account: frozenset(theirs) for account, theirs in of_account.items()}
        self.held = {
            ordinal: {place: frozenset(claims) for place, claims in places.items()} for ordinal, places in held.items()
        }
        self.waiting = {ordinal: frozenset(people) for ordinal, people in waiting.items()}
        self._past = past

    def past(self, ordinal: int, place: int) -> frozenset[tuple[bytes, int]]:
        """Return every claim that had, or has, a place, with its revision."""
        return frozenset(self._past.get((ordinal, place), ()))


def _bookings(count: int) -> str:
    return f"{count} booking{'' if count == 1 else 's'}"


def _figures(gate: GateSide | None, database: DatabaseSide, pool: PoolRow) -> PoolFigures:
    live = [held for known in database.claims.values() for held in known.people if held.ordinal == pool.ordinal]
    counts = None if gate is None else gate.counts.get(pool.ordinal)
    return PoolFigures(
        title=pool.title,
        places=len(pool.places),
        held=sum(_holds(held, pool) for held in live),
        waiting=sum(held.status is Status.WAITLISTED for held in live),
        gate_held=None if counts is None else counts.capacity - counts.free - counts.pending,
        gate_free=None if counts is None else counts.free,
        gate_waiting=None if counts is None else counts.waiting,
        gate_pending=None if counts is None else counts.pending,
    )


def _holds(held: Held, pool: PoolRow) -> bool:
    return held.status is Status.CONFIRMED and held.place in pool.places
