"""The Lua scripts against the plain reference: thousands of steps side by side, every answer and byte compared."""

import asyncio
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, ClassVar, NoReturn, cast

import msgspec
from hypothesis import Phase
from hypothesis import settings as bounds
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from app.booking.gate.admission import Admission, Judged, ScriptAnswer, _Waiting, parse_answers
from app.booking.gate.ledger import Winner
from app.booking.gate.link import ACTIVATE, CLAIM, SETTLE, Links
from app.booking.gate.records import BOOKED, ENTRY, LIVE, PARKED, PoolCounts, Status
from app.booking.gate.state import PoolSetup, Release, ReleaseSetup, pack_ordinals
from app.core.ids import new_id
from app.core.settings import Settings
from app.core.tasks import Chores
from tests.booking.gate.agreement import bits_in
from tests.booking.gate.builders import FAR_FUTURE_MS
from tests.booking.gate.reference import Asked, Booked, Claimed, Hours, Place, Pool, Reference

CAPACITIES = (2, 1, 10)
WAITLIST_LIMITS = (2, 3, 0)
PERSON_LIMIT, ACCOUNT_LIMIT = 2, 5
PEOPLE = [bytes([n]) * 16 for n in range(1, 9)]
ACCOUNTS = [bytes([n]) * 16 for n in (0xA1, 0xA2, 0xA3)]
HOURS = {"open": (0, FAR_FUTURE_MS), "before": (FAR_FUTURE_MS - 1, FAR_FUTURE_MS), "after": (0, 1)}


def _nobody_commits(winner: Winner) -> NoReturn:
    raise AssertionError(winner)


def _nobody_condemns() -> None:
    raise AssertionError


def _nobody_listens(outcome: Judged | Exception) -> NoReturn:
    raise AssertionError(outcome)


def _never() -> bool:
    return False


def _asked(
    number: int,
    account: bytes,
    people: list[bytes],
    choices: list[int],
    hours: tuple[int, int],
    *,
    together: bool,
    waitlist: bool,
) -> Asked:
    body = repr((account, people, choices, together, waitlist)).encode()
    fingerprint = blake2b(body, digest_size=8).digest()
    claim_id = number.to_bytes(16, "big")
    return Asked(claim_id, fingerprint, account, hours[0], hours[1], people, choices, together, waitlist)


CLAIMS = st.builds(
    _asked,
    st.integers(1, 40),
    st.sampled_from(ACCOUNTS),
    st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(range(len(CAPACITIES))), min_size=1, max_size=3, unique=True),
    # Mostly a good pass; now and then one that has expired, or a person with an opening of their own.
    st.sampled_from([(FAR_FUTURE_MS, 0)] * 12 + [(1, 0), (FAR_FUTURE_MS, 2**32 - 1)]),
    together=st.booleans(),
    waitlist=st.booleans(),
)


@dataclass
class Truth:
    """PostgreSQL's part in the play: what was committed, and what the gate has not heard of yet."""

    claims: dict[bytes, Claimed] = field(default_factory=dict)
    behind: set[bytes] = field(default_factory=set)
    # Every version that a worker may have read before it tells the gate.
    versions: list[Claimed] = field(default_factory=list)

    def holders(self) -> Counter[Place]:
        """Return how many hold each place."""
        return Counter(
            (b.ordinal, b.number)
            for claimed in self.claims.values()
            for b in claimed.booked
            if b.status is Status.CONFIRMED
        )

    def change(self, claim_id: bytes, at: int, status: Status, number: int) -> None:
        """Change one booking of a claim, and raise its revision."""
        claimed = self.claims[claim_id]
        booked = list(claimed.booked)
        booked[at] = replace(booked[at], status=status, number=number)
        self.claims[claim_id] = replace(claimed, revision=claimed.revision + 1, booked=tuple(booked))
        self.versions.append(self.claims[claim_id])
        self.behind.add(claim_id)

    def hand_over(self, place: Place) -> None:
        """Give a free place to the first who waits for it, if anybody does."""
        if self.holders()[place]:
            return
        waiting = [
            (claimed.seq, at, claimed.claim_id)
            for claimed in self.claims.values()
            for at, b in enumerate(claimed.booked)
            if b.status is Status.WAITLISTED and b.ordinal == place[0]
        ]
        if waiting:
            _, at, claim_id = min(waiting)
            self.change(claim_id, at, Status.CONFIRMED, place[1])


class GateMachine(RuleBasedStateMachine):
    """Drives the scripts and the reference side by side. A subclass says on which server."""

    server: ClassVar[Settings]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.links = Links(self.server, 1)
        self.truth = Truth()
        self.unconfirmed: list[bytes] = []
        self.version = 0
        pools = tuple(PoolSetup(new_id().bytes, capacity) for capacity in CAPACITIES)
        setup = ReleaseSetup(new_id().bytes, 1, 0, FAR_FUTURE_MS, PERSON_LIMIT, ACCOUNT_LIMIT, pools)
        self.reference = Reference(
            Hours(*HOURS["open"], PERSON_LIMIT, ACCOUNT_LIMIT),
            [
                Pool(capacity, limit, set(range(1, capacity + 1)))
                for capacity, limit in zip(CAPACITIES, WAITLIST_LIMITS, strict=True)
            ],
        )
        self.release = Release(setup, "")
        self.runner.run(self._load(setup))
        self.admission = Admission(self.release, self.links, self.server, Chores(), _nobody_commits, _nobody_condemns)

    async def _load(self, setup: ReleaseSetup) -> None:
        keys = self.release.keys
        async with self.links.lend() as link:
            for ordinal, pool in enumerate(self.reference.pools):
                counts = PoolCounts(len(pool.free), pool.capacity, 0, pool.waitlist_limit, 0, 0, is_open=True)
                free_map = bytearray(pool.capacity // 8 + 1)
                for number in pool.free:
                    free_map[number // 8] |= 0x80 >> number % 8
                await link.commands(
                    [
                        ["HSET", keys.pools, ordinal, counts.pack()],
                        ["SET", keys.free_map(ordinal), bytes(free_map)],
                    ]
                )
            hours = self.reference.hours
            meta = {
                "opens_ms": hours.opens_ms,
                "closes_ms": hours.closes_ms,
                "person_limit": hours.person_limit,
                "account_limit": hours.account_limit,
                "seq": 0,
                "version": 0,
                "setup": setup.pack(),
            }
            fields = [part for item in meta.items() for part in item]
            reply = await link.run(
                ACTIVATE, [keys.meta, keys.pools], [link.identity, setup.epoch, link.identity, *fields]
            )
            assert reply == b"O"

    # --- what can happen ----------------------------------------------------------------------------------

    @rule(claims=st.lists(CLAIMS, min_size=1, max_size=6))
    def claims_of_one_tick(self, claims: list[Asked]) -> None:
        """Several claims, repeated ids among them, and the confirmations that ride along."""
        self._claims(claims)

    def _claims(self, claims: list[Asked]) -> None:
        confirmed, self.unconfirmed = self.unconfirmed, []
        answers = self.runner.run(self._claim(claims, confirmed))
        for claim_id in confirmed:
            self.reference.confirm(claim_id)
        for asked, answer in zip(claims, answers, strict=True):
            assert (answer.code, answer.detail) == self.reference.claim(asked, answer.now_ms)
        self._compare()

    @precondition(lambda self: self.reference.pending - set(self.truth.claims))
    @rule(data=st.data())
    def postgresql_commits(self, data: st.DataObject) -> None:
        """Claims get into PostgreSQL; their confirmations ride on a later call, or are lost."""
        waiting = sorted(self.reference.pending - set(self.truth.claims))
        for claim_id in data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True)):
            self.truth.claims[claim_id] = self.reference.claims[claim_id]
            if data.draw(st.integers(0, 3)):
                self.unconfirmed.append(claim_id)

    @precondition(lambda self: self.reference.pending - set(self.truth.claims))
    @rule(data=st.data())
    def postgresql_voids(self, data: st.DataObject) -> None:
        """Orphans are declared void and released; releasing them again, or what is confirmed, does nothing."""
        orphans = sorted(self.reference.pending - set(self.truth.claims))
        void = data.draw(st.lists(st.sampled_from(orphans), min_size=1, max_size=3))
        self._settle(released=void)
        settled = [claim_id for claim_id in self.reference.claims if claim_id not in self.reference.pending]
        if settled:
            self._settle(released=[data.draw(st.sampled_from(settled))])

    @precondition(lambda self: self.truth.claims)
    @rule(data=st.data())
    def somebody_gives_back(self, data: st.DataObject) -> None:
        """A live booking is cancelled in PostgreSQL, and its place passes hand to hand there."""
        live = [
            (claim_id, at)
            for claim_id, claimed in sorted(self.truth.claims.items())
            for at, b in enumerate(claimed.booked)
            if b.status in LIVE
        ]
        if not live:
            return
        for claim_id, at in data.draw(st.lists(st.sampled_from(live), min_size=1, max_size=4, unique=True)):
            was = self.truth.claims[claim_id].booked[at]
            self.truth.change(claim_id, at, Status.CANCELLED, was.number)
            if was.status is Status.CONFIRMED:
                self.truth.hand_over((was.ordinal, was.number))

    @precondition(lambda self: self.truth.behind)
    @rule(data=st.data())
    def the_gate_hears_of_some_of_it(self, data: st.DataObject) -> None:
        """News comes in any order, more than once, and never all of it at one time."""
        behind = sorted(self.truth.behind)
        told = data.draw(st.lists(st.sampled_from(behind), min_size=1, max_size=4, unique=True))
        self._tell(told)
        self._tell(told[:1])

    @precondition(lambda self: self.truth.versions)
    @rule(data=st.data())
    def old_news_comes_late(self, data: st.DataObject) -> None:
        """A worker read PostgreSQL, was held up, and tells now what it read then."""
        version = data.draw(st.sampled_from(self.truth.versions))
        self._settle(updates=[(version.claim_id, version.revision, version.booked)])

    @precondition(lambda self: self.reference.parked)
    @rule()
    def the_sweep_hands_out_what_is_parked(self) -> None:
        """Parked places go to who waits first; those that nobody wants are free again."""
        places = sorted(self.reference.parked)
        for place in places:
            self.truth.hand_over(place)
        self._tell(sorted(self.truth.behind))
        self._settle(unparked=places)

    @rule(hours=st.sampled_from(["before", "after"]), claims=st.lists(CLAIMS, min_size=1, max_size=3))
    def claims_out_of_hours(self, hours: str, claims: list[Asked]) -> None:
        """The release has not opened, or has closed; whoever won before hears of it all the same."""
        self._set_hours(hours)
        self._claims(claims)
        self._set_hours("open")

    def _set_hours(self, hours: str) -> None:
        opens_ms, closes_ms = HOURS[hours]
        self.reference.hours.opens_ms, self.reference.hours.closes_ms = opens_ms, closes_ms
        self._command("HSET", self.release.keys.meta, "opens_ms", opens_ms, "closes_ms", closes_ms)

    @rule(ordinal=st.sampled_from(range(len(CAPACITIES))), claims=st.lists(CLAIMS, min_size=1, max_size=3))
    def claims_while_a_pool_is_cancelled(self, ordinal: int, claims: list[Asked]) -> None:
        """Staff cancel a pool; later the mistake is undone."""
        self._set_open(ordinal, is_open=False)
        self._claims(claims)
        self._set_open(ordinal, is_open=True)

    def _set_open(self, ordinal: int, *, is_open: bool) -> None:
        self.reference.pools[ordinal].is_open = is_open
        (packed,) = self._command("HGET", self.release.keys.pools, ordinal)
        counts = msgspec.structs.replace(PoolCounts.unpack(cast("bytes", packed)), is_open=is_open)
        self._command("HSET", self.release.keys.pools, ordinal, counts.pack())

    @rule(asked=CLAIMS)
    def another_epoch_is_refused(self, asked: Asked) -> None:
        """A worker that believes in another epoch changes nothing and is told so."""
        replies = self.runner.run(self._refused(asked))
        assert replies == [b"S", b"I", b"S", b"I"]
        self._compare()

    def teardown(self) -> None:
        """At rest both agree: everything pending is settled, all news told, all that is parked handed out."""
        try:
            self._come_to_rest()
        finally:
            self.runner.run(self.links.close())
            self.runner.close()

    def _come_to_rest(self) -> None:
        orphans = sorted(self.reference.pending - set(self.truth.claims))
        if orphans:
            self._settle(released=orphans)
        confirmed = sorted(self.reference.pending)
        self.runner.run(self._claim([], confirmed))
        for claim_id in confirmed:
            self.reference.confirm(claim_id)
        self._tell(sorted(self.truth.behind))
        self.the_sweep_hands_out_what_is_parked()
        holders = self.truth.holders()
        assert max(holders.values(), default=1) == 1
        assert not +self.reference.ahead
        assert not self.reference.parked
        for ordinal, pool in enumerate(self.reference.pools):
            held = {number for where, number in holders if where == ordinal}
            assert pool.free == set(range(1, pool.capacity + 1)) - held
            assert pool.pending == 0

    # --- both sides ---------------------------------------------------------------------------------------

    def _tell(self, claim_ids: Sequence[bytes]) -> None:
        if not claim_ids:
            return
        claims = [self.truth.claims[claim_id] for claim_id in claim_ids]
        self._settle(updates=[(claimed.claim_id, claimed.revision, claimed.booked) for claimed in claims])
        self.truth.behind.difference_update(claim_ids)

    def _settle(
        self,
        released: Sequence[bytes] = (),
        updates: Sequence[tuple[bytes, int, tuple[Booked, ...]]] = (),
        unparked: Sequence[Place] = (),
    ) -> None:
        packed = b"".join(
            struct.pack("<16sIB", claim_id, revision, len(booked))
            + b"".join(ENTRY.pack(b.person, b.ordinal, b.number, b.status) for b in booked)
            for claim_id, revision, booked in updates
        )
        reply = self.runner.run(
            self._run_settle(b"".join(released), packed, b"".join(PARKED.pack(*place) for place in unparked))
        )
        assert reply == b"O" + struct.pack("<I", self.reference.settle(released, updates, unparked))
        self._compare()

    async def _claim(self, claims: list[Asked], confirmed: list[bytes]) -> list[ScriptAnswer]:
        batch = [_Waiting(asked.order(), _nobody_listens, _never, 0.0) for asked in claims]
        async with self.links.lend() as link:
            reply = await link.run(CLAIM, *self.admission._arguments(link.identity, batch, confirmed))
        return parse_answers(reply, len(batch))

    async def _run_settle(self, released: bytes, updates: bytes, unparked: bytes) -> bytes:
        async with self.links.lend() as link:
            return await link.run(
                SETTLE, self._settle_keys(), [link.identity, self.release.epoch, released, updates, unparked]
            )

    def _settle_keys(self) -> list[str]:
        keys = self.release.keys
        names = [keys.meta, keys.pools, keys.claims, keys.people, keys.accounts, keys.pending, keys.parked, keys.ahead]
        return [*names, *self.release.free_maps]

    async def _refused(self, asked: Asked) -> list[bytes]:
        keys = self.release.keys
        names = [keys.meta, keys.pools, keys.claims, keys.people, keys.accounts, keys.pending]
        names += [self.release.free_maps[ordinal] for ordinal in sorted(asked.choices)]
        ordinals = pack_ordinals(sorted(asked.choices))
        async with self.links.lend() as link:
            # Whoever hears that this is another server drops the connection, and with it what it read.
            own_identity = link.identity
            return [
                await link.run(script, key_names, [identity, epoch, *rest])
                for script, key_names, rest in (
                    (CLAIM, names, (1_000, ordinals, b"", asked.order().packed)),
                    (SETTLE, self._settle_keys(), (asked.claim_id, b"", b"")),
                )
                for identity, epoch in ((own_identity, 2), ("somebody else", 1))
            ]

    def _command(self, *words: str | int | bytes) -> list[Any]:
        async def send() -> list[Any]:
            async with self.links.lend() as link:
                return cast("list[Any]", await link.commands([words]))

        return self.runner.run(send())

    async def _everything(self) -> list[Any]:
        keys = self.release.keys
        async with self.links.lend() as link:
            replies = await link.commands(
                [
                    *(["HGETALL", key] for key in (keys.meta, keys.pools, keys.claims, keys.people, keys.accounts)),
                    ["ZRANGE", keys.pending, 0, -1],
                    ["HKEYS", keys.parked],
                    ["HGETALL", keys.ahead],
                    *(["GET", key] for key in self.release.free_maps),
                ]
            )
        return cast("list[Any]", replies)

    def _compare(self) -> None:
        """Compare the whole state."""
        reference = self.reference
        meta, pools, claims, people, accounts, pending, parked, ahead, *free = self.runner.run(self._everything())
        assert int(meta[b"seq"]) == reference.seq
        assert int(meta[b"version"]) >= self.version
        self.version = int(meta[b"version"])
        assert claims == {claim_id: claimed.pack() for claim_id, claimed in reference.claims.items()}
        assert set(pending) == reference.pending
        assert {
            person: {ordinal: (place_no, claim) for ordinal, place_no, claim in BOOKED.iter_unpack(packed)}
            for person, packed in people.items()
        } == reference.people
        assert {account: int(count) for account, count in accounts.items()} == +reference.accounts
        assert {PARKED.unpack(place) for place in parked} == reference.parked
        assert {PARKED.unpack(place): int(count) for place, count in ahead.items()} == +reference.ahead
        for ordinal, pool in enumerate(reference.pools):
            counts = PoolCounts.unpack(pools[str(ordinal).encode()])
            assert bits_in(free[ordinal]) == pool.free
            assert (counts.free, counts.waiting, counts.pending) == (len(pool.free), pool.waiting, pool.pending)
            assert not pool.free or counts.hint_byte <= min(pool.free) // 8


def test_the_scripts_do_what_the_reference_says(settings: Settings) -> None:
    class OnTheServerOfTheTests(GateMachine):
        server = settings

    run_state_machine_as_test(
        OnTheServerOfTheTests,
        settings=bounds(
            max_examples=100,
            stateful_step_count=60,
            deadline=None,
            # The same steps each time: a failure here is a defect, never bad luck.
            derandomize=True,
            # Making a failure smaller takes minutes: take this out to have it done.
            phases=[Phase.generate],
        ),
    )


def test_parsing_an_answer_gives_each_claim_its_own() -> None:
    reply = b"O" + struct.pack("<Q", 7) + b"G" + struct.pack("<H", 0) + b"T" + struct.pack("<H", 2) + b"ab"
    assert parse_answers(reply, 2) == [ScriptAnswer("G", b"", 7), ScriptAnswer("T", b"ab", 7)]


def test_parsing_letters_alone_keeps_their_order() -> None:
    reply = b"O" + struct.pack("<Q", 7) + b"".join(letter + struct.pack("<H", 0) for letter in (b"G", b"F", b"G"))
    answers = parse_answers(reply, 3)
    assert answers == [ScriptAnswer(letter, b"", 7) for letter in "GFG"]
    # One answer for all who hear the same, by which whoever tells it knows that it is the same.
    assert answers[0] is answers[2]
