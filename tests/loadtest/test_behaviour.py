from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import pytest

from loadtest.behaviour import (
    NOTHING_HEARD,
    Ask,
    Ending,
    GiveBack,
    Ground,
    Look,
    Meaning,
    Reply,
    Rest,
    Step,
    Tap,
    best_of,
    live,
    meaning_of,
)
from loadtest.claim_ids import new_claim_id
from loadtest.plan import ParentPlan, birth_month, draw_parents, parent_rng

POOLS = tuple(f"pool-{number:02d}" for number in range(14))
CONFIRMED = Reply(201, state="confirmed")
SOLD_OUT = Reply(409, "sold_out", final=True)
FULL = Reply(409, "full")


@dataclass
class Stage:
    """A world without a network: time passes by resting, replies come from the test."""

    plan: ParentPlan
    answer: Callable[[Step, int], Reply]
    people: tuple[str, ...] = ("child",)
    now_s: float = -10.0
    over_at_s: float = 30.0
    steps: list[tuple[float, Step]] = field(default_factory=list[tuple[float, Step]])
    stayed: list[frozenset[str]] = field(default_factory=list[frozenset[str]])

    def play(self) -> Ending:
        ground = Ground(
            people=self.people,
            eligible={person: frozenset(POOLS) for person in self.people},
            pools=POOLS,
            now=lambda: self.now_s,
            is_over=lambda: self.now_s > self.over_at_s,
            new_claim_id=new_claim_id,
            stays_on=self.stayed.append,
        )
        return self._follow(live(self.plan, ground, parent_rng(1, self.plan.number, "life")))

    def _follow(self, life: Generator[Step, Reply, Ending]) -> Ending:
        endings: list[Ending] = []

        def whole() -> Generator[Step, Reply]:
            endings.append((yield from life))

        script = whole()
        step = next(script, None)
        while step is not None:
            reply = NOTHING_HEARD
            if isinstance(step, Rest):
                self.now_s = max(self.now_s, step.until)
            else:
                if isinstance(step, Tap) and step.at is not None:
                    self.now_s = max(self.now_s, step.at)
                self.steps.append((self.now_s, step))
                reply = self.answer(step, len(self.steps))
            try:
                step = script.send(reply)
            except StopIteration:
                step = None
        return endings[0]

    def taps(self) -> list[Tap]:
        return [step for _, step in self.steps if isinstance(step, Tap)]


def a_parent(**changes: object) -> ParentPlan:
    calm = ParentPlan(
        number=0,
        children_age_months=(100,),
        only_watches=False,
        looks_at=(),
        watches_at=(),
        taps_at=0.1,
        choices=3,
        double_taps=False,
        cut_after_seconds=None,
        asks_before_repeating=False,
        together=True,
        wants_waitlist=False,
        second_choices=0,
        gives_back_after_seconds=None,
        wants_another=False,
        stays_hopeful=False,
        looks_again_seconds=1.0,
    )
    return replace(calm, **changes)  # pyright: ignore[reportArgumentType] - the test names the fields it changes


def test_the_same_seed_draws_the_same_crowd() -> None:
    assert draw_parents(7, 500) == draw_parents(7, 500)
    assert draw_parents(7, 500) != draw_parents(8, 500)


def test_a_larger_crowd_of_a_seed_begins_with_the_smaller_one() -> None:
    few, many = draw_parents(7, 3000), draw_parents(7, 5000)
    assert few == many[:3000]


def test_the_same_parent_taps_the_same_wishes_at_the_same_moments() -> None:
    def taps(number: int) -> list[tuple[float, tuple[str, ...]]]:
        stage = Stage(draw_parents(3, 50)[number], lambda _step, _n: SOLD_OUT)
        stage.play()
        return [(at_s, step.wish.choices) for at_s, step in stage.steps if isinstance(step, Tap)]

    assert [taps(number) for number in range(50)] == [taps(number) for number in range(50)]


def test_a_crowd_of_five_thousand_behaves_like_a_crowd() -> None:
    crowd = draw_parents(1, 5000)
    at_once = sum(0 <= p.taps_at <= 0.3 for p in crowd)
    assert at_once > 3500
    assert sum(p.taps_at < 0 for p in crowd) > 200
    assert sum(p.taps_at > 0.3 for p in crowd) > 800
    assert sum(p.only_watches for p in crowd) > 100
    assert sum(bool(p.looks_at) for p in crowd) > 400
    assert sum(p.double_taps for p in crowd) > 250
    assert sum(p.cut_after_seconds is not None for p in crowd) > 150
    assert sum(len(p.children_age_months) == 2 and p.together for p in crowd) > 400
    assert sum(len(p.children_age_months) == 2 and not p.together for p in crowd) > 100
    assert sum(p.wants_waitlist for p in crowd) > 400
    assert sum(p.gives_back_after_seconds is not None for p in crowd) > 200
    assert sum(p.second_choices > 0 for p in crowd) > 1000
    assert {p.choices for p in crowd} == {1, 2, 3, 4}


@pytest.mark.parametrize("parents", [1, 50, 400, 2000, 5000])
def test_every_crowd_keeps_enough_hopeful_parents_for_what_comes_back(parents: int) -> None:
    hopeful = sum(parent.stays_hopeful for parent in draw_parents(2, parents))
    assert hopeful >= min(parents, 80)


def test_children_are_of_the_age_that_was_drawn() -> None:
    assert birth_month(100, 2026, 11) == "2018-07"
    assert birth_month(10, 2026, 11) == "2026-01"
    assert birth_month(11, 2026, 11) == "2025-12"


@pytest.mark.parametrize(
    ("reply", "meaning"),
    [
        (CONFIRMED, Meaning.CONFIRMED),
        (Reply(200, state="confirmed"), Meaning.CONFIRMED),
        (Reply(202, state="waitlisted"), Meaning.WAITLISTED),
        (Reply(202, state="pending"), Meaning.PENDING),
        (FULL, Meaning.FULL),
        (Reply(409, "full", final=True), Meaning.SOLD_OUT),
        (SOLD_OUT, Meaning.SOLD_OUT),
        (Reply(409, "undecided"), Meaning.FULL),
        (Reply(409, "already_booked"), Meaning.HELD_ALREADY),
        (Reply(409, "limit_reached"), Meaning.BARRED),
        (Reply(409, "time_clash"), Meaning.CLASH),
        (Reply(409, "claim_void"), Meaning.VOID),
        (Reply(425, "not_open_yet"), Meaning.TOO_EARLY),
        (Reply(410, "closed"), Meaning.BARRED),
        (Reply(403, "pass_invalid"), Meaning.BARRED),
        (Reply(422, "validation_failed"), Meaning.BARRED),
        (Reply(429, "rate_limited"), Meaning.BUSY),
        (Reply(503, "busy"), Meaning.BUSY),
        (Reply(503, "rebuilding", retry_after_seconds=1.0), Meaning.BUSY),
        (Reply(500, "internal_error"), Meaning.UNKNOWN),
        (Reply(502), Meaning.UNKNOWN),
        (NOTHING_HEARD, Meaning.UNKNOWN),
    ],
)
def test_a_reply_is_read_as_the_api_defines_it(reply: Reply, meaning: Meaning) -> None:
    assert meaning_of(reply) is meaning


def test_of_two_answers_a_parent_believes_the_better() -> None:
    assert best_of([SOLD_OUT, CONFIRMED]) is CONFIRMED
    assert best_of([FULL, Reply(202, state="pending")]).state == "pending"


def test_an_early_bird_looks_before_it_taps() -> None:
    stage = Stage(a_parent(looks_at=(-3.0, -2.0, -1.0)), lambda _step, _n: CONFIRMED)
    assert stage.play() is Ending.HOLDS
    assert [(at_s, type(step)) for at_s, step in stage.steps] == [
        (-3.0, Look),
        (-2.0, Look),
        (-1.0, Look),
        (0.1, Tap),
    ]


def test_who_taps_too_early_comes_back_when_the_server_said() -> None:
    early = Reply(425, "not_open_yet", retry_after_seconds=0.5)
    stage = Stage(a_parent(taps_at=-0.5), lambda _step, n: early if n == 1 else CONFIRMED)
    assert stage.play() is Ending.HOLDS
    (first_at, first), (again_at, again) = stage.steps
    assert isinstance(first, Tap)
    assert isinstance(again, Tap)
    assert first.wish == again.wish
    assert 0.5 <= again_at - first_at <= 0.6


def test_after_a_lost_reply_the_same_claim_is_sent_again() -> None:
    stage = Stage(a_parent(cut_after_seconds=0.01), lambda _step, n: NOTHING_HEARD if n == 1 else CONFIRMED)
    assert stage.play() is Ending.HOLDS
    first, again = stage.taps()
    assert first.cut_after_seconds == 0.01
    assert again.cut_after_seconds is None
    assert first.wish == again.wish


def test_who_asks_first_sends_again_only_what_never_arrived() -> None:
    def answer(step: Step, n: int) -> Reply:
        if n == 1:
            return NOTHING_HEARD
        return Reply(404, "not_found") if isinstance(step, Ask) else CONFIRMED

    stage = Stage(a_parent(cut_after_seconds=0.01, asks_before_repeating=True), answer)
    assert stage.play() is Ending.HOLDS
    assert [type(step) for _, step in stage.steps] == [Tap, Ask, Tap]
    assert len({tap.wish.claim_id for tap in stage.taps()}) == 1


def test_a_double_tap_is_one_claim_sent_twice() -> None:
    stage = Stage(a_parent(double_taps=True), lambda _step, _n: CONFIRMED)
    stage.play()
    assert [tap.copies for tap in stage.taps()] == [2]


def test_pending_is_asked_again_until_it_is_decided() -> None:
    pending = Reply(202, state="pending", retry_after_seconds=0.2)
    stage = Stage(a_parent(), lambda _step, n: pending if n < 6 else CONFIRMED)
    assert stage.play() is Ending.HOLDS
    assert len({tap.wish.claim_id for tap in stage.taps()}) == 1


def test_a_busy_server_is_left_alone_as_long_as_it_asked() -> None:
    busy = Reply(503, "busy", retry_after_seconds=2.0)
    stage = Stage(a_parent(), lambda _step, n: busy if n == 1 else CONFIRMED)
    stage.play()
    (first_at, _), (again_at, _) = stage.steps
    assert 2.0 <= again_at - first_at <= 3.0


@pytest.mark.parametrize(
    "reply",
    [FULL, Reply(503, "busy"), NOTHING_HEARD, Reply(202, state="pending"), Reply(409, "claim_void"), Reply(500)],
)
def test_nobody_repeats_for_ever(reply: Reply) -> None:
    stage = Stage(a_parent(second_choices=2), lambda _step, _n: reply)
    ending = stage.play()
    assert ending is (Ending.REFUSED if reply is FULL else Ending.UNANSWERED)
    assert len(stage.steps) < 100


def test_a_void_claim_goes_on_under_a_new_id() -> None:
    stage = Stage(a_parent(), lambda _step, n: Reply(409, "claim_void") if n == 1 else CONFIRMED)
    assert stage.play() is Ending.HOLDS
    first, again = stage.taps()
    assert first.wish.claim_id != again.wish.claim_id
    assert first.wish.choices == again.wish.choices


def test_sold_out_ends_a_claim_and_the_impatient_try_other_pools_under_a_new_id() -> None:
    stage = Stage(a_parent(second_choices=2), lambda _step, _n: SOLD_OUT)
    assert stage.play() is Ending.REFUSED
    taps = stage.taps()
    assert len({tap.wish.claim_id for tap in taps}) == len(taps) == 3
    tried = [pool for tap in taps for pool in tap.wish.choices]
    assert len(set(tried)) == len(tried) == 9


def test_siblings_go_in_one_claim() -> None:
    stage = Stage(a_parent(children_age_months=(90, 100)), lambda _step, _n: CONFIRMED, people=("a", "b"))
    stage.play()
    (tap,) = stage.taps()
    assert tap.wish.people == ("a", "b")
    assert tap.wish.together


def test_who_changes_its_mind_gives_the_claim_back_and_sees_it_through() -> None:
    def answer(step: Step, n: int) -> Reply:
        if isinstance(step, GiveBack):
            return NOTHING_HEARD if n == 2 else Reply(200, state="cancelled")
        return CONFIRMED

    stage = Stage(a_parent(gives_back_after_seconds=2.0), answer)
    assert stage.play() is Ending.GAVE_BACK
    (tap,) = stage.taps()
    assert [step for _, step in stage.steps[1:]] == [GiveBack(tap.wish.claim_id)] * 2
    assert stage.steps[1][0] >= 2.1


def test_the_hopeful_take_what_comes_back_for_one_child() -> None:
    def answer(step: Step, n: int) -> Reply:
        match step:
            case Look():
                return Reply(200, left={"pool-05": 1 if n > 4 else 0})
            case Tap(wish):
                return CONFIRMED if wish.choices == ("pool-05",) else SOLD_OUT
            case _:
                return NOTHING_HEARD

    stage = Stage(a_parent(stays_hopeful=True), answer, people=("a", "b"))
    assert stage.play() is Ending.HOLDS
    assert stage.taps()[-1].wish.people == ("a",)
    assert stage.stayed == [frozenset(POOLS)]


def test_the_hopeful_go_home_when_it_is_over() -> None:
    stage = Stage(a_parent(stays_hopeful=True), lambda _s, _n: SOLD_OUT, over_at_s=5.0)
    assert stage.play() is Ending.REFUSED
    assert 5.0 <= stage.now_s <= 7.0


def test_a_waiter_asks_until_the_queue_has_moved() -> None:
    def answer(step: Step, n: int) -> Reply:
        if isinstance(step, Ask):
            return Reply(200, state="confirmed" if n > 4 else "waitlisted")
        return Reply(202, state="waitlisted")

    stage = Stage(a_parent(wants_waitlist=True), answer)
    assert stage.play() is Ending.HOLDS
    assert stage.taps()[0].wish.waitlist


def test_who_only_watches_never_claims() -> None:
    stage = Stage(a_parent(only_watches=True, watches_at=(-1.0, 0.5, 3.0)), lambda _s, _n: Reply(200, left={}))
    assert stage.play() is Ending.WATCHED
    assert [type(step) for _, step in stage.steps] == [Look, Look, Look]


def test_the_greedy_ask_for_a_second_session_elsewhere() -> None:
    stage = Stage(a_parent(wants_another=True), lambda _s, n: CONFIRMED if n == 1 else Reply(409, "time_clash"))
    assert stage.play() is Ending.HOLDS
    first, second = stage.taps()
    assert not set(first.wish.choices) & set(second.wish.choices)
    assert first.wish.claim_id != second.wish.claim_id


def test_claim_ids_are_uuids_of_version_seven_and_never_the_same() -> None:
    ids = {new_claim_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    for claim_id in ids:
        assert len(claim_id) == 36
        assert claim_id[14] == "7"
        assert claim_id[19] in "89ab"
