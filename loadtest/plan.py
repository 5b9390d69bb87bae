"""Who the parents of a crowd are: drawn from a seed, one generator a parent.

Parent number n of a seed is the same in every crowd of that seed, however large, save for how many stay hopeful: a
small crowd needs a larger share of them, so that places that come back late still find a taker.
"""

import random
from dataclasses import dataclass
from typing import Final

# Shares of the crowd, told by station staff about opening nights and rounded; the verdict does not depend on them.
_SHARE_ONLY_WATCHES: Final = 0.04
_SHARE_EARLY_BIRDS: Final = 0.12
_SHARE_TAPS_EARLY: Final = 0.06
_SHARE_TAPS_AT_ONCE: Final = 0.74
_SHARE_TWO_CHILDREN: Final = 0.18
_SHARE_TOGETHER: Final = 0.75
_SHARE_DOUBLE_TAPS: Final = 0.08
_SHARE_REPLY_LOST: Final = 0.05
_SHARE_ASKS_FIRST: Final = 0.3
_SHARE_WAITLIST: Final = 0.15
_SHARE_GIVES_BACK: Final = 0.06
_SHARE_WANTS_ANOTHER: Final = 0.04
_SHARE_IMPATIENT: Final = 0.35
_SHARE_HOPEFUL: Final = 0.06
_HOPEFUL_AT_LEAST: Final = 120
_CHOICE_SHARES: Final = (0.25, 0.35, 0.25, 0.15)

# The burst: most taps within this span after the opening, the nearer the denser.
_BURST_SECONDS: Final = 0.3
_BURST_MEAN_SECONDS: Final = 0.11
_TAIL_MEAN_SECONDS: Final = 1.0
_TAIL_SECONDS_MAX: Final = 5.0
_EARLIEST_TAP_SECONDS: Final = 0.9
LOOKS_FROM_SECONDS: Final = 3.0

# Ages in months on the day of the rehearsal; operator.py's sessions are cut to them.
_AGE_MONTHS_MIN: Final = 6 * 12 + 6
_AGE_MONTHS_MAX: Final = 11 * 12 + 6


@dataclass(frozen=True, slots=True)
class ParentPlan:
    """One parent. Moments are seconds relative to the opening; spans are seconds."""

    number: int
    children_age_months: tuple[int, ...]
    only_watches: bool
    looks_at: tuple[float, ...]
    watches_at: tuple[float, ...]
    taps_at: float
    choices: int
    double_taps: bool
    cut_after_seconds: float | None
    asks_before_repeating: bool
    together: bool
    wants_waitlist: bool
    second_choices: int
    gives_back_after_seconds: float | None
    wants_another: bool
    stays_hopeful: bool
    looks_again_seconds: float


def parent_rng(seed: int, number: int, purpose: str) -> random.Random:
    """Answer the generator of one parent for one purpose; strings seed by their bytes, the same on every machine."""
    return random.Random(f"{seed}/{number}/{purpose}")


def _tap_moment(rng: random.Random) -> float:
    kind = rng.random()
    if kind < _SHARE_TAPS_EARLY:
        return -rng.uniform(0.03, _EARLIEST_TAP_SECONDS)
    if kind < _SHARE_TAPS_EARLY + _SHARE_TAPS_AT_ONCE:
        moment = rng.expovariate(1.0 / _BURST_MEAN_SECONDS)
        # What falls outside the span is folded back into it: the shape stays, the bound holds.
        return moment % _BURST_SECONDS
    return min(_BURST_SECONDS + rng.expovariate(1.0 / _TAIL_MEAN_SECONDS), _TAIL_SECONDS_MAX)


def _draw_parent(seed: int, number: int, hopeful_share: float) -> ParentPlan:
    rng = parent_rng(seed, number, "plan")
    children = 2 if rng.random() < _SHARE_TWO_CHILDREN else 1
    ages = tuple(rng.randint(_AGE_MONTHS_MIN, _AGE_MONTHS_MAX) for _ in range(children))
    only_watches = rng.random() < _SHARE_ONLY_WATCHES
    looks = rng.randint(1, 4) if rng.random() < _SHARE_EARLY_BIRDS else 0
    looks_at = tuple(sorted(-rng.uniform(0.3, LOOKS_FROM_SECONDS) for _ in range(looks)))
    watches_at = tuple(sorted(rng.uniform(-1.0, 6.0) for _ in range(rng.randint(2, 6)))) if only_watches else ()
    taps_at = _tap_moment(rng)
    double_taps = rng.random() < _SHARE_DOUBLE_TAPS
    reply_lost = rng.random() < _SHARE_REPLY_LOST and not double_taps
    return ParentPlan(
        number=number,
        children_age_months=ages,
        only_watches=only_watches,
        looks_at=looks_at,
        watches_at=watches_at,
        taps_at=taps_at,
        choices=rng.choices((1, 2, 3, 4), _CHOICE_SHARES)[0],
        double_taps=double_taps,
        cut_after_seconds=rng.uniform(0.0, 0.04) if reply_lost else None,
        asks_before_repeating=rng.random() < _SHARE_ASKS_FIRST,
        together=rng.random() < _SHARE_TOGETHER,
        # One child only: a family of two at the head of a queue would rightly hold a single free place open.
        wants_waitlist=rng.random() < _SHARE_WAITLIST and children == 1,
        second_choices=rng.randint(1, 2) if rng.random() < _SHARE_IMPATIENT else 0,
        gives_back_after_seconds=rng.uniform(1.5, 4.0) if rng.random() < _SHARE_GIVES_BACK else None,
        wants_another=rng.random() < _SHARE_WANTS_ANOTHER,
        stays_hopeful=rng.random() < hopeful_share,
        looks_again_seconds=rng.uniform(0.8, 1.6),
    )


def draw_parents(seed: int, parents: int) -> tuple[ParentPlan, ...]:
    """Draw the crowd of a seed; the same numbers always give the same crowd."""
    hopeful_share = min(1.0, max(_SHARE_HOPEFUL, _HOPEFUL_AT_LEAST / parents))
    return tuple(_draw_parent(seed, number, hopeful_share) for number in range(parents))


def pool_weights(pools: int) -> tuple[float, ...]:
    """How sought after the pools are, by their order: the first about three times the last."""
    return tuple(1.0 / (1.0 + 2.0 * place / max(1, pools - 1)) for place in range(pools))


def birth_month(age_months: int, year: int, month: int) -> str:
    """Answer the birth month, as `2016-05`, of a child of that age in the given month."""
    months = year * 12 + (month - 1) - age_months
    return f"{months // 12:04d}-{months % 12 + 1:02d}"
