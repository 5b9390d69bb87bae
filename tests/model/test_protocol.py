"""The seat protocol as a model small enough to try every order of events: it holds, and each guard is needed."""

from collections.abc import Callable

import pytest

from tests.model.exploration import Exploration, explore
from tests.model.state import Guards, Left, State

EVERY_GUARD = Guards()


Tell = Callable[[Exploration], None]


# What may happen, each as often as stated, in any order; and how many states there are at the least.
@pytest.mark.parametrize(
    ("may_happen", "states_min"),
    [
        pytest.param(Left(doubts=0, losses=0), 80_000, id="a crash, a rebuild by hand and a return"),
        pytest.param(Left(losses=0, rebuilds=0), 10_000, id="a crash, a doubt and a return"),
        pytest.param(Left(crashes=0, losses=0), 25_000, id="a doubt, a rebuild by hand and a return"),
        pytest.param(Left(doubts=0, rebuilds=0, returns=0), 70_000, id="a crash, and Redis lost or old"),
        pytest.param(Left(crashes=0, rebuilds=0, returns=0), 25_000, id="a doubt, and Redis lost or old"),
        pytest.param(Left(crashes=0, doubts=0, rebuilds=0), 30_000, id="a return, and Redis lost or old"),
        pytest.param(Left(0, 1, 0, 0, 1, hang_ups=1), 5_000, id="a doubt, a return and a phone that hangs up"),
    ],
)
def test_every_promise_holds_in_every_order_of_events(may_happen: Left, states_min: int, tell: Tell) -> None:
    found = explore(EVERY_GUARD, State(left=may_happen))
    tell(found)
    assert found.broken == "", found.story
    # A model that explores little would promise much.
    assert found.state_count >= states_min
    assert found.rest_count > 0


_NOTHING = Left(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("guards", "may_happen", "broken"),
    [
        pytest.param(EVERY_GUARD._replace(tombstone=False), _NOTHING, "no place leaks", id="tombstone"),
        pytest.param(
            EVERY_GUARD._replace(tombstone_before_release=False),
            _NOTHING,
            "no place leaks",
            id="release only after the tombstone",
        ),
        pytest.param(
            EVERY_GUARD._replace(doubt_settled_by_insert=False),
            _NOTHING,
            "no place leaks",
            id="doubts settled by insert",
        ),
        pytest.param(
            EVERY_GUARD._replace(claim_id_first=False),
            _NOTHING,
            "a claim id gets one answer",
            id="claim id before stock",
        ),
        pytest.param(
            EVERY_GUARD._replace(final_only_when_nothing_pending=False),
            _NOTHING,
            "no final no before the place is sold",
            id="no final no while a claim is on its way",
        ),
        pytest.param(
            EVERY_GUARD._replace(epoch_fence=False),
            _NOTHING._replace(rebuilds=1),
            "no row of an old epoch is written after a rebuild",
            id="epoch fence",
        ),
        pytest.param(
            EVERY_GUARD._replace(rebuild_waits_for_commits=False),
            _NOTHING._replace(rebuilds=1),
            "no row of an old epoch is written after a rebuild",
            id="the release's lock",
        ),
        pytest.param(
            EVERY_GUARD._replace(gate_identity=False),
            _NOTHING._replace(losses=1),
            "no place leaks",
            id="gate identity",
        ),
        pytest.param(
            EVERY_GUARD._replace(activation_goes_forward=False),
            _NOTHING._replace(crashes=1, rebuilds=1),
            "a claim id gets one answer",
            id="activation goes forward only",
        ),
        pytest.param(
            EVERY_GUARD._replace(place_parked_for_waiter=False),
            _NOTHING._replace(crashes=1, returns=1),
            "no final no before the place is sold",
            id="a place parked for a waiter",
        ),
        pytest.param(
            EVERY_GUARD._replace(news_only_of_its_epoch=False),
            _NOTHING._replace(rebuilds=1, returns=1),
            "no place leaks",
            id="news for the epoch that PostgreSQL has",
        ),
        pytest.param(
            EVERY_GUARD._replace(unjudged_end_with_their_phone=False),
            _NOTHING._replace(returns=1, hang_ups=1),
            "nobody is booked after a final no",
            id="a claim that nobody waits for is not judged",
        ),
        pytest.param(
            EVERY_GUARD._replace(sweep_compares_epoch=False),
            _NOTHING._replace(crashes=1, rebuilds=1, returns=1),
            "no place leaks",
            id="a sweep compares epochs",
        ),
    ],
)
def test_without_this_guard_a_promise_breaks(guards: Guards, may_happen: Left, broken: str, tell: Tell) -> None:
    found = explore(guards, State(left=may_happen))
    tell(found)
    assert found.broken == broken, found.story
