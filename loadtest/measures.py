"""Figures of a rush: how long answers took, when the last place went, how the levels fell."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, TypedDict

from loadtest.evidence import Evidence
from loadtest.history import Kind, Operation

_NOT_YET: Final = frozenset({"not_open_yet", "pending"})
_BUSY: Final = frozenset({0, 429, 503})
_REFUSED: Final = 400
# Upper edges of the histogram's buckets: each about 1.5 times the one before, as latencies spread.
_EDGES_MS: Final = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000)

Summary = dict[str, int | float]


class LevelRow(TypedDict):
    """Places left and people waiting at one moment, in the order of the pools."""

    seconds: float
    left: list[int]
    waiting: list[int]


class PoolRow(TypedDict):
    """One pool as the crowd found it."""

    id: str
    title: str
    capacity: int
    left_before: int


def summarise(latencies_ms: Sequence[float]) -> Summary:
    """Summarise latencies; a percentile is the nearest rank, so it is always a latency that occurred."""
    ordered = sorted(latencies_ms)
    count = len(ordered)

    def percentile(share: float) -> float:
        return round(ordered[min(count - 1, max(0, -int(-share * count // 1) - 1))], 2) if count else 0.0

    return {
        "count": count,
        "p50_ms": percentile(0.50),
        "p95_ms": percentile(0.95),
        "p99_ms": percentile(0.99),
        "max_ms": round(ordered[-1], 2) if count else 0.0,
    }


def latency_ms(operation: Operation) -> float:
    """Milliseconds from the moment the parent meant to act to the answer."""
    return (operation.ended_s - operation.due_s) * 1000.0


def answered_in_rush(evidence: Evidence) -> list[Operation]:
    """All answers that came during the rush."""
    return [o for o in evidence.history.operations if o.status and not o.after_rush]


def answers_by_kind(operations: Sequence[Operation]) -> dict[str, Summary]:
    """Summarise the latencies of each kind of request."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for operation in operations:
        by_kind[operation.kind.value].append(latency_ms(operation))
    return {kind: summarise(latencies) for kind, latencies in sorted(by_kind.items())}


def histogram(operations: Sequence[Operation]) -> list[dict[str, float | int | None]]:
    """Count latencies in buckets; the last bucket has no upper edge."""
    counts = [0] * (len(_EDGES_MS) + 1)
    for operation in operations:
        took_ms = latency_ms(operation)
        counts[next((n for n, edge in enumerate(_EDGES_MS) if took_ms <= edge), len(_EDGES_MS))] += 1
    return [{"up_to_ms": edge, "count": n} for edge, n in zip((*_EDGES_MS, None), counts, strict=True)]


def refusals(operations: Sequence[Operation]) -> dict[str, int]:
    """Count refusals by code, the most frequent first."""
    counts: dict[str, int] = defaultdict(int)
    for operation in operations:
        if operation.status >= _REFUSED:
            counts[operation.outcome] += 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def parents_answered(operations: Sequence[Operation]) -> Summary:
    """Summarise how long parents waited for their first real answer, from their first tap or, if later, the opening."""
    tapped_s: dict[int, float] = {}
    answered_s: dict[int, float] = {}
    for operation in operations:
        if operation.kind is not Kind.CLAIM:
            continue
        tapped_s[operation.parent] = min(tapped_s.get(operation.parent, operation.due_s), operation.due_s)
        if operation.status not in _BUSY and operation.outcome not in _NOT_YET:
            before = answered_s.get(operation.parent, operation.ended_s)
            answered_s[operation.parent] = min(before, operation.ended_s)
    return summarise([(ended - max(0.0, tapped_s[who])) * 1000.0 for who, ended in answered_s.items()])


def crowd_lag(operations: Sequence[Operation]) -> Summary:
    """Summarise how late the crowd itself was; far above a few milliseconds it measures itself, not the server."""
    return summarise([(o.started_s - o.due_s) * 1000.0 for o in operations])


def last_place_seconds(evidence: Evidence) -> float | None:
    """Answer when the last place of the last pool went, the first time; None if a pool was never full."""
    filled_s: list[float] = []
    for pool in evidence.release.pools:
        if pool.left_before == 0:
            continue
        changes = [(at_s, 1) for at_s in evidence.taken_at_s.get(pool.id, ())]
        for story in evidence.stories.values():
            back = story.give_back
            if back is not None:
                changes += [(back.ended_s, -1) for seat in story.seats if seat.pool == pool.id]
        held = 0
        for at_s, change in sorted(changes):
            held += change
            if held == pool.left_before:
                filled_s.append(at_s)
                break
        else:
            return None
    return round(max(filled_s), 3) if filled_s else None


def refill_seconds(evidence: Evidence) -> float | None:
    """Answer when the last place given back had found a new holder; None if none was given back."""
    backs = [story.give_back.ended_s for story in evidence.stories.values() if story.give_back is not None]
    if not backs:
        return None
    yeses = [story.yes.ended_s for story in evidence.stories.values() if story.yes is not None and story.is_live]
    return round(max(0.0, *yeses), 3) if yeses else None


def timeline(evidence: Evidence) -> list[LevelRow]:
    """List the places left and people waiting in every pool over time."""
    return [
        {"seconds": round(level.at_s, 3), "left": list(level.left), "waiting": list(level.waiting)}
        for level in evidence.history.levels
    ]


def taken_at_ms(evidence: Evidence) -> list[list[float]]:
    """List, pool by pool, the milliseconds after the opening at which its places were taken, by the server's times."""
    return [[round(at_s * 1000, 1) for at_s in evidence.taken_at_s.get(p.id, ())] for p in evidence.release.pools]
