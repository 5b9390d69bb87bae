"""The verdict on a rehearsal: what was promised, what is there, and which promise of the protocol broke.

`judge` is a pure function of what the crowd recorded and what the audit says, so that every way to fail can be fed to
it by hand.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Final

from loadtest import measures, wire
from loadtest.crowd import CrowdResult
from loadtest.evidence import Evidence
from loadtest.invariants import CHECKS, double_holders, leaked_places, lost_promises

_EXAMPLES_MAX: Final = 20
CHECKED_AGAINST_AUDIT: Final = "answers, the claims read again, PostgreSQL and the gate (audit)"
CHECKED_AGAINST_ANSWERS: Final = "answers, the claims read again"


@dataclass(slots=True)
class Verdict:
    """The result, in the shape of the JSON file. Counts are places, save `parents`, `answers` and `refusals`."""

    parents: int
    places: int
    confirmed: int
    waitlisted: int
    overbooked: int
    lost: int
    leaked: int
    seconds_to_last_place: float | None
    seconds_to_refill: float | None
    answers: measures.Summary
    refusals: dict[str, int]
    invariants: dict[str, bool]
    seed: int
    # For each broken invariant, some of what broke it.
    broken: dict[str, list[str]]
    answers_by_kind: dict[str, measures.Summary]
    parents_answered: measures.Summary
    crowd_lag: measures.Summary
    crowd_cpu_us_per_request: float
    endings: dict[str, int]
    given_back: int
    unknowns: int
    latency_histogram: list[dict[str, float | int | None]]
    pools: list[measures.PoolRow]
    taken_at_ms: list[list[float]]
    timeline: list[measures.LevelRow]
    workers: int | None
    duration_seconds: dict[str, float]
    checked_against: str
    release: str
    opens_at: str
    started_at: str
    run: str
    base_url: str
    notes: list[str] = field(default_factory=list[str])

    @property
    def holds(self) -> bool:
        """Whether every promise held."""
        return all(self.invariants.values()) and not (self.overbooked or self.lost or self.leaked)

    def as_document(self) -> dict[str, object]:
        """Give the JSON document."""
        return {"holds": self.holds, **asdict(self)}


def judge(
    result: CrowdResult, audit: wire.Audit | None, *, held_before: int = 0, workers: int | None = None
) -> Verdict:
    """Judge a rush by its records and, where an operator could read one, the audit.

    `held_before` is what others held before the crowd came; it is taken off the audit's count.
    """
    evidence = Evidence(result.release, result.history, audit, held_before, result.clock_error_seconds)
    broken = {name: check(evidence) for name, check in CHECKS.items()}
    answered = measures.answered_in_rush(evidence)
    stories = evidence.stories.values()
    over_capacity = 0 if audit is None else audit.double_held + audit.over_capacity
    waiting = sum(claim_id in evidence.waited and story.yes is None for claim_id, story in evidence.stories.items())
    return Verdict(
        parents=result.plan.parents,
        places=sum(pool.left_before for pool in result.release.pools),
        confirmed=len(evidence.live) if audit is None else audit.held - held_before,
        waitlisted=waiting if audit is None else audit.waiting,
        overbooked=len(double_holders(evidence)) + over_capacity,
        lost=sum(places for _, places in lost_promises(evidence)),
        leaked=sum(leaked_places(evidence).values()),
        seconds_to_last_place=measures.last_place_seconds(evidence),
        seconds_to_refill=measures.refill_seconds(evidence),
        answers=measures.summarise([measures.latency_ms(operation) for operation in answered]),
        refusals=measures.refusals(answered),
        invariants={name: not sentences for name, sentences in broken.items()},
        seed=result.plan.seed,
        broken={name: sentences[:_EXAMPLES_MAX] for name, sentences in broken.items() if sentences},
        answers_by_kind=measures.answers_by_kind(answered),
        parents_answered=measures.parents_answered(answered),
        crowd_lag=measures.crowd_lag(answered),
        crowd_cpu_us_per_request=round(result.cpu_us_per_request, 1),
        endings=dict(Counter(result.history.endings.values())),
        given_back=sum(len(story.seats) for story in stories if story.give_back is not None),
        unknowns=sum(o.status == 0 for o in result.history.operations),
        latency_histogram=measures.histogram(answered),
        pools=[
            {"id": pool.id, "title": pool.title, "capacity": pool.capacity, "left_before": pool.left_before}
            for pool in result.release.pools
        ],
        taken_at_ms=measures.taken_at_ms(evidence),
        timeline=measures.timeline(evidence),
        workers=workers,
        duration_seconds={
            "preparing": round(result.preparing_seconds, 2),
            "rush": round(result.rush_seconds, 2),
            "settling": round(result.history.settling_seconds, 2),
        },
        checked_against=CHECKED_AGAINST_ANSWERS if audit is None else CHECKED_AGAINST_AUDIT,
        release=result.release.id,
        opens_at=result.release.opens_at,
        started_at=result.started_at,
        run=result.run_name,
        base_url=result.plan.base_url,
        notes=result.notes,
    )
