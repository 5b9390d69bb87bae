"""The checker, on a service in which a guard is switched off: it must call the promise broken, and show by what."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.engines import Template
from tests.chaos.faults import FAULTS
from tests.chaos.rounds import play

pytestmark = [pytest.mark.anyio, pytest.mark.proof, pytest.mark.timeout(300)]

_HAND_OVER: Final = Path("migrations/versions/2026-11-23_hand_over_v1.sql")
_COMMITS: Final = (
    Path("migrations/versions/2026-11-23_commit_claims_v1.sql"),
    Path("migrations/versions/2026-11-26_commit_claims_v2.sql"),
)
ROUNDS_MAX: Final = 3
_ROOT: Final = Path(__file__).parents[2]


def without(path: Path, guard: str, instead: str) -> str:
    """Return the statement that makes a function of ours anew without one of its guards."""
    text = (_ROOT / path).read_text("utf-8")
    assert text.count(guard) == 1
    return text.replace(guard, instead).replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")


@dataclass(frozen=True, slots=True)
class Broken:
    """A guard that is switched off, in the service or in PostgreSQL, and the fault in which that shows."""

    promise: str
    seam: str = ""
    statements: Sequence[str] = field(default_factory=tuple[str, ...])
    fault: str = "nothing"


BROKEN: Final = {
    "a place is given twice": Broken(
        "one_holder_each_place", "gives_places_twice", ["DROP INDEX uq_booking_one_holder_each_place"]
    ),
    "no limits": Broken("limits_hold", "knows_no_limits"),
    "two places at once": Broken(
        "limits_hold", statements=["ALTER TABLE booking DROP CONSTRAINT ex_booking_nobody_in_two_places"]
    ),
    "yes before the commit": Broken("every_yes_is_kept", "says_yes_before_the_commit", fault="web_killed"),
    "commits not flushed": Broken("every_yes_is_kept", "commits_without_flushing", fault="postgres_killed"),
    "no to winners": Broken("a_final_no_is_final", "says_no_to_winners"),
    "claim ids forgotten": Broken("one_answer_each_claim", "forgets_claim_ids"),
    "no sweep": Broken("gate_and_postgresql_agree", "never_sweeps+before_the_commit", fault="crash_before_commit"),
    "no sweep, seen by the places": Broken(
        "no_place_leaks", "never_sweeps+before_the_commit", fault="crash_before_commit"
    ),
    "every no is final": Broken("sold_out_means_sold_out", "calls_every_no_final+forgets_some_winners"),
    "the last who waits is first": Broken(
        "waiting_order_is_kept",
        statements=[without(_HAND_OVER, "ORDER BY wait_seq, position", "ORDER BY wait_seq DESC, position")],
    ),
    "newcomers pass": Broken(
        "waiting_order_is_kept",
        "lets_newcomers_pass",
        [without(_HAND_OVER, "ORDER BY wait_seq, position", "LIMIT 0")],
    ),
    "no epoch fence": Broken(
        "epochs_only_grow",
        "commits_late",
        [without(path, "IF v_epoch IS DISTINCT FROM p_epoch THEN", "IF false THEN") for path in _COMMITS],
        fault="flushall",
    ),
    "a slow rebuild": Broken("recovery_is_bounded", "rebuilds_slowly", fault="flushall"),
    "families split": Broken("together_is_all_or_nothing", "splits_families"),
    "an error of ours": Broken("no_other_error", "fails_at_questions"),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_without_its_guard_a_promise_is_called_broken(broken: Broken, template: Template, tmp_path: Path) -> None:
    found: set[str] = set()
    # What a fault meets is a matter of chance: an orphan that its phone asks about again is none.
    for number in range(ROUNDS_MAX):
        outcome = await play(
            number,
            FAULTS[broken.fault],
            seed=broken.promise,
            template=template,
            directory=tmp_path,
            seam=broken.seam,
            statements=broken.statements,
        )
        assert not outcome.trouble, outcome.trouble
        found |= set(outcome.broken)
        if broken.promise in found:
            return
    raise AssertionError(f"{broken.promise} held all the same; broken: {found or 'nothing'}")
