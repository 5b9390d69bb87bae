"""The checker, on small histories made by hand: each promise broken in the least way there is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

import msgspec
import pytest

from app.booking.gate.records import PoolCounts
from loadtest.behaviour import Wish
from loadtest.history import History, Kind, Operation, Seat
from tests.booking.gate.agreement import GateState, Seen
from tests.chaos.checker import CHECKS, judge, story_of
from tests.chaos.evidence import BookingRow, Change, ClaimRow, Evidence, Pool, Recovery, Strain, Truth

A, B, C = (str(UUID(int=number)) for number in (0xA, 0xB, 0xC))
POOL, SAME_HOUR, LATER = "pool", "same hour", "later"
WELL: Final = Recovery(0.0, 0.1, 0.1)
STRAIN: Final = Strain(
    sent=1_000,
    connections=0,
    answers={409: 900, 503: 100},
    without_retry_after=0,
    memory_before_mib={"web worker": 120.0, "Valkey": 10.0},
    memory_mib={"web worker": 150.0, "Valkey": 20.0},
    checks=40,
    failed_checks=0,
    slowest_check_s=0.4,
    back_s=0.0,
    retries=20,
    failed_retries=0,
)


@dataclass
class Told:
    """What one claim asked, what it heard, and what PostgreSQL has of it. Everything can be made wrong."""

    claim: str
    people: tuple[str, ...] = ("ann",)
    pool: str = POOL
    places: tuple[int | None, ...] = (1,)
    together: bool = True
    at_s: float = 1.0
    account: str = ""
    wait_seq: int | None = None
    rows: bool = True
    heard: Sequence[Operation] | None = None
    epoch: tuple[int, int] = (1, 1)
    asks: bool = True
    wished: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def operation(self, outcome: str, status: int, at_s: float | None = None, **changes: object) -> Operation:
        """Return one request of this claim that was answered."""
        moment = self.at_s if at_s is None else at_s
        seats = tuple(
            Seat(person, self.pool, place, "confirmed" if place else "waitlisted")
            for person, place in zip(self.people, self.places, strict=True)
        )
        asked = Operation(
            kind=Kind.CLAIM,
            parent=0,
            claim=self.claim,
            due_s=moment,
            started_s=moment,
            ended_s=moment + 0.01,
            status=status,
            outcome=outcome,
            seats=seats if status < 400 else (),
        )
        return msgspec.structs.replace(asked, **changes)

    @property
    def operations(self) -> Sequence[Operation]:
        """Return what was asked: unless told otherwise one request, answered with yes."""
        if self.heard is not None:
            return self.heard
        return [self.operation("confirmed" if self.places[0] else "waitlisted", 201)]


@dataclass
class Round:
    """A round of a few claims, put together into evidence. `changes` come after those that the claims make."""

    claims: Sequence[Told]
    changes: Sequence[tuple[str, str, int | None]] = ()
    free: Mapping[int, set[int]] | None = None
    seen: Callable[[Seen], None] = lambda _seen: None
    epochs: Sequence[tuple[int, int]] = ((0, 1),)
    recovery: Recovery = WELL
    unanswered: Sequence[str] = ()
    hasty: Sequence[str] = ()
    strain: Strain | None = None
    fills: bool = False
    places: frozenset[int] = frozenset({1, 2, 3})
    _numbers: int = field(default=0, init=False)

    def evidence(self) -> Evidence:
        """Put everything together."""
        history = History()
        rows: list[BookingRow] = []
        changes: list[Change] = []
        for told in self.claims:
            if told.asks:
                people, choices = told.wished or told.people, told.choices or (told.pool,)
                history.wishes[told.claim] = Wish(told.claim, people, choices, told.together, waitlist=True)
                history.senders[told.claim] = 0
                history.operations.extend(told.operations)
            for position, (person, place) in enumerate(zip(told.people, told.places, strict=True)):
                if not told.rows:
                    continue
                booking, status = f"{told.claim}/{position}", "confirmed" if place else "waitlisted"
                rows.append(BookingRow(booking, told.claim, person, told.pool, place, status, told.wait_seq, position))
                changes.append(self._change(told.at_s, booking, told.claim, person, told.pool, place, status))
        last = {row.id: row for row in rows}
        for booking, status, place in self.changes:
            row = last[booking] = replace(last[booking], status=status, place_no=place)
            changes.append(self._change(5.0, booking, row.claim, row.person, row.pool, place, status))
        state = GateState(free=dict(self.free or {0: set(), 1: set(), 2: set()}), waiting={0: 0, 1: 0, 2: 0})
        counts = {n: PoolCounts(len(free), 3, 0, 0, 0, 0, is_open=True) for n, free in state.free.items()}
        gate = Seen(GateState(free=dict(state.free), waiting=dict(state.waiting)), counts, set(), set())
        self.seen(gate)
        truth = Truth(
            claims={
                t.claim: ClaimRow(t.claim, t.account or t.claim, t.epoch[0], "confirmed", t.at_s)
                for t in self.claims
                if t.rows
            },
            bookings=list(last.values()),
            changes=changes,
            epochs=self.epochs,
            epoch_of_claims=[(t.claim, *t.epoch) for t in self.claims if t.rows],
            epoch=self.epochs[-1][1],
            state=state,
        )
        return Evidence(
            pools=[
                Pool(POOL, 0, self.places, 100.0, 200.0, fills=self.fills),
                Pool(SAME_HOUR, 1, frozenset({1, 2, 3}), 150.0, 250.0, fills=False),
                Pool(LATER, 2, frozenset({1, 2, 3}), 300.0, 400.0, fills=False),
            ],
            person_limit=2,
            account_limit=3,
            history=history,
            truth=truth,
            gate=gate,
            recovery=self.recovery,
            unanswered=self.unanswered,
            hasty=self.hasty,
            strain=self.strain,
        )

    def _change(
        self, at_s: float, booking: str, claim: str, person: str, pool: str, place: int | None, status: str
    ) -> Change:
        self._numbers += 1
        return Change(self._numbers, at_s, at_s, booking, claim, person, pool, place, status)


def waiter(claim: str, person: str, seq: int, at_s: float = 0.5) -> Told:
    return Told(claim, (person,), places=(None,), wait_seq=seq, at_s=at_s)


def told_sold_out(claim: str) -> Told:
    told = Told(claim, rows=False)
    return replace(told, heard=[told.operation("sold_out", 409, final=True)])


def test_a_round_in_which_all_went_well_is_called_well() -> None:
    families = [
        Told(A, ("ann", "bob"), places=(1, 2)),
        Told(B, ("cid",), places=(3,), at_s=1.1),
        Told(C, ("ann",), LATER, (1,), at_s=1.2),
    ]
    assert judge(Round(families, fills=True, strain=STRAIN).evidence()) == {}


def test_a_place_that_is_given_back_and_handed_on_is_held_once() -> None:
    gives_back = Told(A)
    heard = [gives_back.operation("confirmed", 201), gives_back.operation("200", 200, 2.0, kind=Kind.CANCEL, seats=())]
    claims = [replace(gives_back, heard=heard), waiter(B, "bob", 1, at_s=1.5)]
    changes = [(f"{A}/0", "cancelled", 1), (f"{B}/0", "confirmed", 1)]
    assert judge(Round(claims, changes).evidence()) == {}


_TWICE = Told(A)
_AGAIN_ELSEWHERE = replace(
    _TWICE,
    heard=[
        _TWICE.operation("confirmed", 201),
        _TWICE.operation("confirmed", 200, 2.0, seats=(Seat("ann", POOL, 2, "confirmed"),)),
    ],
)
_REFUSED_AFTER = replace(_TWICE, heard=[_TWICE.operation("confirmed", 201), _TWICE.operation("claim_void", 409, 2.0)])
_FINAL_NO = replace(_TWICE, heard=[_TWICE.operation("sold_out", 409, final=True)])
_VOID = replace(_TWICE, heard=[_TWICE.operation("claim_void", 409)])
_LIMIT = replace(_TWICE, heard=[_TWICE.operation("limit_reached", 409)])
_GIVES_BACK = replace(
    _TWICE,
    heard=[_TWICE.operation("confirmed", 201), _TWICE.operation("200", 200, 2.0, kind=Kind.CANCEL, seats=())],
)
_BROKE = replace(_TWICE, heard=[_TWICE.operation("confirmed", 201), _TWICE.operation("internal_error", 500, 2.0)])
_NEWCOMER = Told(C, ("cid",), places=(2,), at_s=2.0)


def _pending(seen: Seen) -> None:
    seen.pending.add(UUID(A))


def _parked(seen: Seen) -> None:
    seen.parked.add((0, 1))


def _counts_a_place_more(seen: Seen) -> None:
    seen.state.free[0] = {3}


def _knows_somebody_else(seen: Seen) -> None:
    seen.state.claims[UUID(A)] = []


_GROWN = replace(STRAIN, memory_mib={"web worker": 150.0, "Valkey": 170.0})

CASES: Final[dict[str, tuple[str, Round]]] = {
    "two in one place": ("one_holder_each_place", Round([Told(A), Told(B, ("bob",), at_s=1.1)])),
    "a place that there is not": ("one_holder_each_place", Round([Told(A, places=(4,))])),
    "a person over the limit": (
        "limits_hold",
        Round([Told(A), Told(B, pool=LATER), Told(C, pool=SAME_HOUR, places=(None,), wait_seq=1)]),
    ),
    "an account over the limit": (
        "limits_hold",
        Round(
            [Told(A, ("ann", "bob"), places=(1, 2), account="x"), Told(B, ("cid", "dee"), LATER, (1, 2), account="x")]
        ),
    ),
    "twice in one pool": ("limits_hold", Round([Told(A), Told(B, places=(2,))])),
    "two places at one hour": ("limits_hold", Round([Told(A), Told(B, pool=SAME_HOUR)])),
    "a yes that is nowhere": ("every_yes_is_kept", Round([Told(A, rows=False)])),
    "a yes for another place": ("every_yes_is_kept", Round([Told(A)], [(f"{A}/0", "confirmed", 2)])),
    "a waiter whom somebody sent away": (
        "every_yes_is_kept",
        Round([waiter(A, "ann", 1)], [(f"{A}/0", "cancelled", None)]),
    ),
    "booked and never asked for": ("nothing_else_is_booked", Round([replace(Told(A), asks=False)])),
    "a stranger booked": ("nothing_else_is_booked", Round([replace(Told(A), wished=("bob",))])),
    "booked where nobody wanted": ("nothing_else_is_booked", Round([replace(Told(A), choices=(LATER,))])),
    "booked over the limit that was named": ("a_final_no_is_final", Round([_LIMIT])),
    "a yes that somebody took away": ("every_yes_is_kept", Round([Told(A)], [(f"{A}/0", "cancelled", 1)])),
    "booked after a final no": ("a_final_no_is_final", Round([_FINAL_NO])),
    "booked under a void id": ("a_final_no_is_final", Round([_VOID])),
    "two places for one id": ("one_answer_each_claim", Round([_AGAIN_ELSEWHERE])),
    "a no after a yes": ("one_answer_each_claim", Round([_REFUSED_AFTER])),
    "a claim that is pending for ever": ("gate_and_postgresql_agree", Round([Told(A)], seen=_pending)),
    "a place that is parked for nobody": ("gate_and_postgresql_agree", Round([Told(A)], seen=_parked)),
    "the gate counts a place more": ("gate_and_postgresql_agree", Round([Told(A)], seen=_counts_a_place_more)),
    "the gate knows somebody else": ("gate_and_postgresql_agree", Round([Told(A)], seen=_knows_somebody_else)),
    "a place is left": ("no_place_leaks", Round([Told(A)], free={0: {2}, 1: set(), 2: set()}, fills=True)),
    "sold out too early": ("sold_out_means_sold_out", Round([told_sold_out(A)])),
    "sold out too early, though somebody waits": (
        "sold_out_means_sold_out",
        Round([told_sold_out(A), waiter(B, "bob", 1)]),
    ),
    "sold out long after it was given back": (
        "sold_out_means_sold_out",
        Round(
            [
                _GIVES_BACK,
                replace(told_sold_out(B), at_s=20.0, heard=[Told(B).operation("sold_out", 409, 20.0, final=True)]),
            ],
            [(f"{A}/0", "cancelled", 1)],
            places=frozenset({1}),
        ),
    ),
    "a later waiter first": (
        "waiting_order_is_kept",
        Round([waiter(A, "ann", 1), waiter(B, "bob", 2)], [(f"{B}/0", "confirmed", 1)]),
    ),
    "a newcomer before a waiter": ("waiting_order_is_kept", Round([waiter(A, "ann", 1), _NEWCOMER])),
    "an epoch that goes back": ("epochs_only_grow", Round([Told(A)], epochs=[(0, 2), (2, 1)])),
    "a row of an old epoch": ("epochs_only_grow", Round([Told(A, epoch=(1, 2))])),
    "away for too long": ("recovery_is_bounded", Round([Told(A)], recovery=Recovery(0.0, 3.1, 0.1))),
    "away for good": ("recovery_is_bounded", Round([Told(A)], recovery=Recovery(0.0, None, 0.1))),
    "never settled": ("recovery_is_bounded", Round([Told(A)], recovery=Recovery(0.0, 0.1, None))),
    "no answer": ("recovery_is_bounded", Round([Told(A)], unanswered=[B])),
    "half a family": (
        "together_is_all_or_nothing",
        Round([Told(A, ("ann", "bob"), places=(1, 2))], [(f"{A}/1", "cancelled", 2)]),
    ),
    "an error of the server's": ("no_other_error", Round([_BROKE])),
    "sent away without a word": ("no_other_error", Round([Told(A)], hasty=[A])),
    "an error in a storm": ("overload_is_bounded", Round([Told(A)], strain=replace(STRAIN, answers={409: 9, 500: 1}))),
    "no Retry-After in a storm": (
        "overload_is_bounded",
        Round([Told(A)], strain=replace(STRAIN, without_retry_after=1)),
    ),
    "memory in a storm": (
        "overload_is_bounded",
        Round([Told(A)], strain=replace(STRAIN, memory_mib={"web worker": 150.0, "Valkey": 170.0})),
    ),
    "a health check in a storm": ("overload_is_bounded", Round([Told(A)], strain=replace(STRAIN, failed_checks=1))),
    "a winner's retry in a storm": ("overload_is_bounded", Round([Told(A)], strain=replace(STRAIN, failed_retries=1))),
    "slow after a storm": ("overload_is_bounded", Round([Told(A)], strain=replace(STRAIN, back_s=2.1))),
    "away after a storm": (
        "overload_is_bounded",
        Round([Told(A)], strain=STRAIN, recovery=Recovery(0.0, 2.1, 0.1)),
    ),
}


@pytest.mark.parametrize(("promise", "broken"), CASES.values(), ids=CASES.keys())
def test_a_broken_promise_is_called_by_its_name(promise: str, broken: Round) -> None:
    assert promise in judge(broken.evidence())


def test_every_promise_has_a_case() -> None:
    assert {promise for promise, _ in CASES.values()} == set(CHECKS)


def test_the_story_of_a_claim_tells_what_was_heard_and_written_in_order() -> None:
    lines = story_of(Round([_AGAIN_ELSEWHERE]).evidence(), A)
    assert [line.split()[2] for line in lines] == ["PostgreSQL:", "claim", "the", "claim", "claim", "claim"]
    assert "heard 200 confirmed" in lines[-1]
