from collections.abc import Callable
from typing import Final

import msgspec
import pytest

from loadtest.history import Kind, Level, Lingering
from loadtest.invariants import CHECKS
from tests.loadtest.healthy_rush import LATE_MORNING, MORNING, NOON, Rush, healthy_rush, seat


def _broken(rush: Rush) -> set[str]:
    evidence = rush.evidence()
    return {name for name, check in CHECKS.items() if check(evidence)}


def _audit(rush: Rush, **changes: object) -> None:
    assert rush.audit is not None
    rush.audit = msgspec.structs.replace(rush.audit, **changes)


def _a_place_promised_twice(rush: Rush) -> None:
    rush.wish("thief", 8, ("h",), MORNING)
    rush.confirm("thief", 0.05, seat("h", MORNING, 1))


def _a_place_held_twice_in_postgres(rush: Rush) -> None:
    _audit(rush, double_held=1)


def _one_place_too_many(rush: Rush) -> None:
    rush.wish("surplus", 8, ("h",), MORNING)
    rush.confirm("surplus", 0.05, seat("h", MORNING, 3))


def _postgres_over_capacity(rush: Rush) -> None:
    _audit(rush, over_capacity=1)


def _a_child_with_two_places(rush: Rush) -> None:
    rush.wish("again", 1, ("a",), NOON)
    rush.confirm("again", 0.05, seat("a", NOON, 3))


def _an_account_with_three_places(rush: Rush) -> None:
    rush.wish("third", 2, ("b3",), MORNING)
    rush.confirm("third", 0.05, seat("b3", MORNING, 3))


def _a_child_in_two_rooms(rush: Rush) -> None:
    rush.wish("clash", 1, ("a",), LATE_MORNING)
    rush.confirm("clash", 0.05, seat("a", LATE_MORNING, 2))


def _a_yes_that_is_gone(rush: Rush) -> None:
    rush.history.operations = [
        msgspec.structs.replace(o, status=404, outcome="not_found", seats=())
        if o.claim == "alone" and o.kind is Kind.CLAIM_STATUS
        else o
        for o in rush.history.operations
    ]


def _a_yes_with_another_place_later(rush: Rush) -> None:
    rush.history.operations = [
        msgspec.structs.replace(o, seats=(seat("a", MORNING, 9),))
        if o.claim == "alone" and o.kind is Kind.CLAIM_STATUS
        else o
        for o in rush.history.operations
    ]


def _a_yes_that_its_owner_cannot_see(rush: Rush) -> None:
    rush.history.listed[1] = {}


def _a_booking_nobody_was_told_of(rush: Rush) -> None:
    _audit(rush, held=6)


def _fewer_places_held_than_promised(rush: Rush) -> None:
    _audit(rush, held=4, free=1)


def _a_yes_after_sold_out(rush: Rush) -> None:
    rush.confirm("refused", 1.0, seat("e", MORNING, 3))


def _booked_in_secret_after_sold_out(rush: Rush) -> None:
    rush.history.listed[5] = {"refused": "confirmed"}


def _another_place_for_the_same_claim(rush: Rush) -> None:
    rush.say("alone", 0.2, 200, "confirmed", (seat("a", MORNING, 2),))


def _a_winner_who_retries_hears_sold_out(rush: Rush) -> None:
    rush.say("alone", 0.2, 409, "sold_out", final=True)


def _the_second_tap_of_a_winner_hears_sold_out(rush: Rush) -> None:
    rush.say("alone", 0.011, 409, "sold_out", final=True, lasted_s=0.002)


def _a_winner_who_retries_is_pending(rush: Rush) -> None:
    rush.say("alone", 0.2, 202, "pending")


def _the_gate_counts_a_free_place(rush: Rush) -> None:
    assert rush.audit is not None
    assert rush.audit.gate is not None
    _audit(rush, gate=msgspec.structs.replace(rush.audit.gate, free=1))


def _a_claim_pending_for_ever(rush: Rush) -> None:
    assert rush.audit is not None
    assert rush.audit.gate is not None
    _audit(rush, gate=msgspec.structs.replace(rush.audit.gate, pending=1))


def _an_audit_that_knows_it_is_wrong(rush: Rush) -> None:
    _audit(rush, consistent=False)


def _a_place_free_while_somebody_waits(rush: Rush) -> None:
    rush.history.levels.append(Level(12.0, (1, 0, 0), (2, 0, 0)))


def _a_place_free_while_somebody_watches(rush: Rush) -> None:
    rush.history.levels.append(Level(12.0, (0, 1, 0), (2, 0, 0)))
    rush.history.lingering.append(Lingering(9, frozenset({NOON})))


def _a_place_never_taken_though_refused(rush: Rush) -> None:
    rush.history.levels.append(Level(12.0, (1, 0, 0), (0, 0, 0)))


def _a_place_free_in_postgres_alone(rush: Rush) -> None:
    _audit(rush, free=1)


def _a_final_no_before_the_last_place_went(rush: Rush) -> None:
    rush.change("second", decided_at_s=0.9)


def _a_final_no_for_a_pool_never_filled(rush: Rush) -> None:
    rush.wish("early", 8, ("h",), MORNING, LATE_MORNING)
    rush.change("late", status=409, outcome="time_clash", seats=())
    rush.say("early", 0.5, 409, "sold_out", final=True)


def _a_later_waiter_moves_up(rush: Rush) -> None:
    rush.say("waits-next", 5.0, 200, "confirmed", (seat("g", MORNING, 1),), kind=Kind.CLAIM_STATUS)


def _a_newcomer_passes_the_queue(rush: Rush) -> None:
    rush.wish("newcomer", 8, ("h",), MORNING)
    rush.confirm("newcomer", 3.0, seat("h", MORNING, 1))


def _half_a_family(rush: Rush) -> None:
    rush.change("siblings", seats=(seat("b1", NOON, 1),))


def _a_family_in_two_pools(rush: Rush) -> None:
    rush.change("siblings", seats=(seat("b1", NOON, 1), seat("b2", MORNING, 2)))


def _a_pool_nobody_asked_for(rush: Rush) -> None:
    rush.change("second", seats=(seat("c", NOON, 2),))


def _somebody_elses_child(rush: Rush) -> None:
    rush.change("second", seats=(seat("stranger", MORNING, 2),))


def _a_yes_without_a_place(rush: Rush) -> None:
    rush.change("second", seats=())


def _a_yes_before_the_opening(rush: Rush) -> None:
    rush.change("alone", decided_at_s=-0.2)


def _a_parent_without_an_answer(rush: Rush) -> None:
    rush.history.endings[1] = "unanswered"


def _a_promise_that_could_not_be_asked_about(rush: Rush) -> None:
    rush.history.operations = [
        o for o in rush.history.operations if o.claim != "alone" or o.kind is not Kind.CLAIM_STATUS
    ]


def _a_server_that_broke(rush: Rush) -> None:
    rush.say("refused", 0.55, 500, "internal_error")


BREAKS: Final[tuple[tuple[str, Callable[[Rush], None]], ...]] = (
    ("one_holder_a_place", _a_place_promised_twice),
    ("one_holder_a_place", _a_place_held_twice_in_postgres),
    ("capacity_holds", _one_place_too_many),
    ("capacity_holds", _postgres_over_capacity),
    ("limits_hold", _a_child_with_two_places),
    ("limits_hold", _an_account_with_three_places),
    ("nobody_in_two_places_at_once", _a_child_in_two_rooms),
    ("every_yes_is_kept", _a_yes_that_is_gone),
    ("every_yes_is_kept", _a_yes_with_another_place_later),
    ("every_yes_is_kept", _a_yes_that_its_owner_cannot_see),
    ("promised_is_what_is_held", _a_booking_nobody_was_told_of),
    ("promised_is_what_is_held", _fewer_places_held_than_promised),
    ("no_yes_after_a_final_no", _a_yes_after_sold_out),
    ("no_yes_after_a_final_no", _booked_in_secret_after_sold_out),
    ("same_claim_same_answer", _another_place_for_the_same_claim),
    ("same_claim_same_answer", _a_winner_who_retries_hears_sold_out),
    ("same_claim_same_answer", _the_second_tap_of_a_winner_hears_sold_out),
    ("same_claim_same_answer", _a_winner_who_retries_is_pending),
    ("gate_and_postgres_agree", _the_gate_counts_a_free_place),
    ("gate_and_postgres_agree", _a_claim_pending_for_ever),
    ("gate_and_postgres_agree", _an_audit_that_knows_it_is_wrong),
    ("nothing_leaks", _a_place_free_while_somebody_waits),
    ("nothing_leaks", _a_place_free_while_somebody_watches),
    ("nothing_leaks", _a_place_never_taken_though_refused),
    ("nothing_leaks", _a_place_free_in_postgres_alone),
    ("no_sold_out_while_a_place_is_free", _a_final_no_before_the_last_place_went),
    ("no_sold_out_while_a_place_is_free", _a_final_no_for_a_pool_never_filled),
    ("waiting_order_kept", _a_later_waiter_moves_up),
    ("waiting_order_kept", _a_newcomer_passes_the_queue),
    ("together_is_all_or_nothing", _half_a_family),
    ("together_is_all_or_nothing", _a_family_in_two_pools),
    ("answers_fit_the_wish", _a_pool_nobody_asked_for),
    ("answers_fit_the_wish", _somebody_elses_child),
    ("answers_fit_the_wish", _a_yes_without_a_place),
    ("nobody_before_the_opening", _a_yes_before_the_opening),
    ("everybody_was_answered", _a_parent_without_an_answer),
    ("everybody_was_answered", _a_promise_that_could_not_be_asked_about),
    ("no_server_error", _a_server_that_broke),
)


def test_a_rush_in_which_every_promise_holds_breaks_nothing() -> None:
    assert _broken(healthy_rush()) == set()


@pytest.mark.parametrize(("name", "break_it"), BREAKS, ids=[broken.__name__[1:] for _, broken in BREAKS])
def test_each_broken_promise_is_seen(name: str, break_it: Callable[[Rush], None]) -> None:
    rush = healthy_rush()
    break_it(rush)
    assert name in _broken(rush)


def test_every_check_has_a_history_that_breaks_it() -> None:
    assert {name for name, _ in BREAKS} == set(CHECKS)


def _give_back(rush: Rush, claim: str, at_s: float) -> None:
    rush.say(claim, at_s, 200, "cancelled", kind=Kind.CANCEL)
    rush.history.operations = [
        msgspec.structs.replace(o, outcome="cancelled", seats=()) if o.claim == claim and o.after_rush else o
        for o in rush.history.operations
    ]
    rush.history.listed[rush.history.senders[claim]] = {claim: "cancelled"}


def test_a_place_given_back_and_taken_again_is_one_holder_at_a_time() -> None:
    rush = healthy_rush()
    _give_back(rush, "late", 2.0)
    rush.wish("next", 8, ("h",), LATE_MORNING)
    rush.confirm("next", 2.5, seat("h", LATE_MORNING, 1))
    assert _broken(rush) == set()


def test_a_place_passed_hand_to_hand_to_the_first_waiter_keeps_the_order() -> None:
    rush = healthy_rush()
    _give_back(rush, "alone", 2.0)
    # The first waiter hears of it before the phone that gave back does.
    rush.history.operations = [o for o in rush.history.operations if o.claim != "waits-first" or not o.after_rush]
    place = (seat("f", MORNING, 1),)
    rush.say("waits-first", 2.005, 200, "confirmed", place, kind=Kind.CLAIM_STATUS, lasted_s=0.001)
    rush.say("waits-first", 11.0, 200, "confirmed", place, kind=Kind.CLAIM_STATUS, after_rush=True)
    assert rush.audit is not None
    _audit(rush, waiting=1, gate=msgspec.structs.replace(rush.audit.gate, waiting=1) if rush.audit.gate else None)
    rush.history.levels.append(Level(12.0, (0, 0, 0), (1, 0, 0)))
    assert _broken(rush) == set()


def test_a_place_that_came_back_when_everybody_had_gone_home_is_no_leak() -> None:
    rush = healthy_rush()
    _give_back(rush, "late", 8.0)
    rush.wish("long-gone", 8, ("h",), LATE_MORNING)
    rush.say("long-gone", 0.5, 409, "sold_out", final=True)
    rush.history.levels.append(Level(12.0, (0, 0, 1), (2, 0, 0)))
    assert rush.audit is not None
    gate = rush.audit.gate
    assert gate is not None
    _audit(rush, held=4, free=1, gate=msgspec.structs.replace(gate, held=4, free=1))
    assert _broken(rush) == set()


def test_a_place_that_came_back_between_two_taps_lets_no_and_yes_both_be_true() -> None:
    rush = healthy_rush()
    _give_back(rush, "late", 2.0)
    rush.wish("lucky", 8, ("h",), LATE_MORNING)
    rush.say("lucky", 1.999, 409, "sold_out", final=True)
    rush.confirm("lucky", 1.999, seat("h", LATE_MORNING, 1))
    assert _broken(rush) == set()


def test_a_family_of_two_refused_beside_one_free_place_is_no_broken_promise() -> None:
    rush = healthy_rush()
    rush.wish("family", 8, ("h1", "h2"), LATE_MORNING)
    rush.say("family", 0.001, 409, "sold_out", final=True)
    assert _broken(rush) == set()


def test_a_give_back_of_unknown_outcome_is_settled_by_looking_again() -> None:
    rush = healthy_rush()
    rush.say("late", 2.0, 0, "no_answer_cut", kind=Kind.CANCEL)
    rush.history.operations = [
        msgspec.structs.replace(o, outcome="cancelled", seats=()) if o.claim == "late" and o.after_rush else o
        for o in rush.history.operations
    ]
    rush.wish("next", 8, ("h",), LATE_MORNING)
    rush.confirm("next", 2.5, seat("h", LATE_MORNING, 1))
    assert _broken(rush) == set()


def test_without_an_audit_the_answers_alone_are_judged() -> None:
    rush = healthy_rush()
    rush.audit = None
    assert _broken(rush) == set()
    _a_place_promised_twice(rush)
    assert "one_holder_a_place" in _broken(rush)
