"""What claim.lua and settle.lua mean, in plain Python: slow, obvious, and written from the protocol."""

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from app.booking.gate.admission import Order
from app.booking.gate.records import CLAIM_HEAD, ENTRY, LIVE, Status

Place = tuple[int, int]


@dataclass(frozen=True)
class Asked:
    """A claim as it comes to the script. Ids are 16 bytes, times milliseconds."""

    claim_id: bytes
    fingerprint: bytes
    account: bytes
    pass_expires_ms: int
    delay_ms: int
    people: list[bytes]
    choices: list[int]
    together: bool
    waitlist: bool

    def order(self) -> Order:
        """Return the claim as the script takes it, as claim.lua describes it."""
        flags = self.together | self.waitlist << 1
        counts = flags, len(self.people), len(self.choices)
        head = (self.claim_id, self.fingerprint, self.account, self.pass_expires_ms, self.delay_ms, *counts)
        wishes = b"".join(self.people) + struct.pack(f"<{len(self.choices)}H", *self.choices)
        return Order(
            self.claim_id,
            sum(1 << ordinal for ordinal in set(self.choices)),
            struct.pack("<16s8s16sQIBBB", *head) + wishes,
            b"{}",
        )


@dataclass(frozen=True)
class Booked:
    """One person of a claim. `number`: the place, or the position on the waiting list."""

    person: bytes
    ordinal: int
    number: int
    status: Status


@dataclass(frozen=True)
class Claimed:
    """A claim that was admitted."""

    claim_id: bytes
    revision: int
    fingerprint: bytes
    account: bytes
    seq: int
    decided_ms: int
    booked: tuple[Booked, ...]

    def pack(self) -> bytes:
        """Return the packed form, as records.py describes it."""
        head = CLAIM_HEAD.pack(self.revision, self.fingerprint, self.account, self.seq, self.decided_ms)
        return head + b"".join(ENTRY.pack(b.person, b.ordinal, b.number, b.status) for b in self.booked)


@dataclass
class Pool:
    """One pool as the gate counts it."""

    capacity: int
    waitlist_limit: int
    free: set[int]
    waiting: int = 0
    pending: int = 0
    is_open: bool = True


@dataclass
class Hours:
    """When the release is open, and its limits. Times in Unix ms."""

    opens_ms: int
    closes_ms: int
    person_limit: int
    account_limit: int


@dataclass
class Reference:
    """The state of a release's gate. Nothing here is clever; everything is a set or a dictionary."""

    hours: Hours
    pools: list[Pool]
    claims: dict[bytes, Claimed] = field(default_factory=dict)
    pending: set[bytes] = field(default_factory=set)
    # Who is where: person -> pool -> (place, or 0 while waiting; the claim).
    people: dict[bytes, dict[int, tuple[int, bytes]]] = field(default_factory=dict)
    accounts: Counter[bytes] = field(default_factory=Counter)
    parked: set[Place] = field(default_factory=set)
    # Places taken from holders who have not been heard of yet.
    ahead: Counter[Place] = field(default_factory=Counter)
    seq: int = 0

    # --- claims -------------------------------------------------------------------------------------------

    def claim(self, asked: Asked, now_ms: int) -> tuple[str, bytes]:
        """Judge one claim: the script's letter and what follows it."""
        known = self.claims.get(asked.claim_id)
        if known is not None:
            if known.fingerprint != asked.fingerprint:
                return "M", b""
            return ("P" if asked.claim_id in self.pending else "K"), known.pack()
        out_of_hours = self._out_of_hours(asked, now_ms)
        if out_of_hours is not None:
            return out_of_hours
        groups = [asked.people] if asked.together else [[person] for person in asked.people]
        booked: list[Booked] = []
        refusals: list[tuple[str, bytes]] = []
        for group in groups:
            placed = self._place(asked, group)
            if isinstance(placed, list):
                booked += placed
            else:
                refusals.append(placed)
        if booked:
            return self._admit(asked, booked, now_ms)
        # "Full" says least, so any other reason is told instead; above all, that nothing is certain yet.
        undecided = (refusal for refusal in refusals if refusal[0] == "U")
        certain = (refusal for refusal in refusals if refusal[0] != "F")
        letter, detail = next(undecided, None) or next(certain, refusals[0])
        if letter == "B":
            return "B", detail + self.claims[detail[:16]].pack()
        if letter == "F":
            return ("G" if self._nothing_can_come_back(asked) else "F"), b""
        return letter, detail

    def _out_of_hours(self, asked: Asked, now_ms: int) -> tuple[str, bytes] | None:
        opens_ms = self.hours.opens_ms + asked.delay_ms
        if now_ms >= asked.pass_expires_ms:
            return "X", b""
        if now_ms < opens_ms:
            return "N", struct.pack("<Q", opens_ms)
        return ("Z", b"") if now_ms >= self.hours.closes_ms else None

    def _admit(self, asked: Asked, booked: list[Booked], now_ms: int) -> tuple[str, bytes]:
        self.seq += 1
        claimed = Claimed(asked.claim_id, 1, asked.fingerprint, asked.account, self.seq, now_ms, tuple(booked))
        self.claims[asked.claim_id] = claimed
        self.pending.add(asked.claim_id)
        someone_placed = any(b.status is Status.CONFIRMED for b in booked)
        return ("T" if someone_placed else "W"), claimed.pack()

    def _place(self, asked: Asked, group: Sequence[bytes]) -> list[Booked] | tuple[str, bytes]:
        fit = self._first_fit(asked.choices, group)
        if isinstance(fit, bytes):
            return ("U", b"") if fit[:16] in self.pending else ("B", fit)
        for person in group:
            booked = self.people.get(person, {})
            if len(booked) >= self.hours.person_limit:
                unsettled = any(holder in self.pending for _, holder in booked.values())
                return ("U", b"") if unsettled else ("L", b"p" + person)
        if self.accounts[asked.account] + len(group) > self.hours.account_limit:
            return ("U", b"") if self.pending else ("L", b"a")
        if fit is not None:
            return [self._take_lowest(asked, person, fit) for person in group]
        if asked.waitlist and len(group) == 1:
            waiting = self._wait(asked, group[0])
            if waiting is not None:
                return [waiting]
        return "F", b""

    def _first_fit(self, choices: Iterable[int], group: Sequence[bytes]) -> int | bytes | None:
        """Find the first pool with room for the group, or who of them is booked where."""
        for ordinal in choices:
            for person in group:
                if ordinal in self.people.get(person, {}):
                    place_no, holder = self.people[person][ordinal]
                    return holder + person + struct.pack("<HI", ordinal, place_no)
            pool = self.pools[ordinal]
            if pool.is_open and pool.waiting == 0 and len(pool.free) >= len(group):
                return ordinal
        return None

    def _take_lowest(self, asked: Asked, person: bytes, ordinal: int) -> Booked:
        pool = self.pools[ordinal]
        place_no = min(pool.free)
        pool.free.remove(place_no)
        pool.pending += 1
        self._join(asked, person, ordinal, place_no)
        return Booked(person, ordinal, place_no, Status.CONFIRMED)

    def _wait(self, asked: Asked, person: bytes) -> Booked | None:
        for ordinal in asked.choices:
            pool = self.pools[ordinal]
            has_room = pool.waiting < pool.waitlist_limit
            if pool.is_open and has_room and (not pool.free or pool.waiting):
                pool.waiting += 1
                self._join(asked, person, ordinal, 0)
                return Booked(person, ordinal, pool.waiting, Status.WAITLISTED)
        return None

    def _join(self, asked: Asked, person: bytes, ordinal: int, place_no: int) -> None:
        self.people.setdefault(person, {})[ordinal] = (place_no, asked.claim_id)
        self.accounts[asked.account] += 1

    def _nothing_can_come_back(self, asked: Asked) -> bool:
        pools = [pool for pool in map(self.pools.__getitem__, asked.choices) if pool.is_open]
        if asked.waitlist and self.pending and any(pool.waiting for pool in pools):
            return False
        return not any(pool.pending or pool.free for pool in pools)

    def confirm(self, claim_id: bytes) -> None:
        """Note that a claim is in PostgreSQL."""
        if claim_id in self.pending:
            self.pending.remove(claim_id)
            for booked in self.claims[claim_id].booked:
                if booked.status is Status.CONFIRMED:
                    self.pools[booked.ordinal].pending -= 1

    # --- settling -----------------------------------------------------------------------------------------

    def settle(
        self,
        released: Iterable[bytes] = (),
        updates: Iterable[tuple[bytes, int, tuple[Booked, ...]]] = (),
        unparked: Iterable[Place] = (),
    ) -> int:
        """Bring the state in line with PostgreSQL; return how many updates were for claims not known here."""
        loose: set[Place] = set()
        for claim_id in released:
            self._undo(claim_id, loose)
        unknown = self._hear(updates, loose)
        for place in unparked:
            if place in self.parked and self.pools[place[0]].waiting == 0:
                self._unpark(place)
                self.pools[place[0]].free.add(place[1])
        for ordinal, place_no in loose:
            pool = self.pools[ordinal]
            if pool.waiting:
                self.parked.add((ordinal, place_no))
                pool.pending += 1
            else:
                pool.free.add(place_no)
        return unknown

    def _undo(self, claim_id: bytes, loose: set[Place]) -> None:
        """Undo a claim that is void, unless it has been settled otherwise."""
        if claim_id not in self.pending:
            return
        self.confirm(claim_id)
        claimed = self.claims.pop(claim_id)
        for booked in claimed.booked:
            self._leave(claimed, booked)
            self._let_go(booked, loose)

    def _hear(self, updates: Iterable[tuple[bytes, int, tuple[Booked, ...]]], loose: set[Place]) -> int:
        """Take the news: first everything that was given back, then everything that was handed on."""
        unknown = 0
        changes: list[tuple[Claimed, Booked, Booked]] = []
        for claim_id, revision, booked_now in updates:
            before = self.claims.get(claim_id)
            if before is None:
                unknown += 1
            elif before.revision < revision:
                self.confirm(claim_id)
                self.claims[claim_id] = replace(before, revision=revision, booked=booked_now)
                changes += [(before, was, now) for was, now in zip(before.booked, booked_now, strict=True)]
        changes = [(claimed, was, now) for claimed, was, now in changes if was.status is not now.status]
        for claimed, was, now in changes:
            if was.status in LIVE:
                self._let_go(was, loose)
                if now.status is not Status.CONFIRMED:
                    self._leave(claimed, was)
        for claimed, _, now in changes:
            if now.status is Status.CONFIRMED:
                self._take((now.ordinal, now.number), loose)
                self.people[now.person][now.ordinal] = (now.number, claimed.claim_id)
        return unknown

    def _leave(self, claimed: Claimed, booked: Booked) -> None:
        del self.people[booked.person][booked.ordinal]
        if not self.people[booked.person]:
            del self.people[booked.person]
        self.accounts[claimed.account] -= 1

    def _let_go(self, booked: Booked, loose: set[Place]) -> None:
        place = (booked.ordinal, booked.number)
        if booked.status is Status.WAITLISTED:
            self.pools[booked.ordinal].waiting -= 1
        elif self.ahead[place]:
            self.ahead[place] -= 1
        else:
            loose.add(place)

    def _take(self, place: Place, loose: set[Place]) -> None:
        ordinal, place_no = place
        if place in loose:
            loose.remove(place)
        elif place in self.parked:
            self._unpark(place)
        elif place_no in self.pools[ordinal].free:
            self.pools[ordinal].free.remove(place_no)
        else:
            self.ahead[place] += 1

    def _unpark(self, place: Place) -> None:
        self.parked.remove(place)
        self.pools[place[0]].pending -= 1
