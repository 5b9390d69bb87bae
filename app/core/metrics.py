"""What is counted for those who run the service, in Prometheus's terms. No label holds anything of a person or a claim.

Each process counts for itself. `clocktower serve` gives its processes a directory in which their numbers lie, and adds
them up for whoever asks (see `app/cli/metrics.py`); without that directory they are this process's own.
"""

from collections.abc import Sequence
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_PREFIX: Final = "clocktower"
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def _counter(name: str, meaning: str, label: str | None = None, values: Sequence[str] = ()) -> Counter:
    """Return a counter, at nought for each of these values: of a number that is not there no rise can be seen."""
    counter = Counter(name, meaning, (label,) if label else (), namespace=_PREFIX)
    for value in values:
        counter.labels(value)
    return counter


CLAIMS: Final = _counter(
    "claims_judged",
    "Claims that the script judged, by what it said.",
    "outcome",
    ("booked", "waitlisted", "sold_out", "full"),
)
COMMITS: Final = _counter(
    "claims_written",
    "Claims of which PostgreSQL was told, by what it made of them.",
    "outcome",
    ("in", "known", "void", "clash", "stale", "place_taken", "person_booked", "differs"),
)
IN_DOUBT: Final = _counter("claims_in_doubt", "Claims whose commit had no certain outcome in time.")
IN_DOUBT_SETTLED: Final = _counter(
    "claims_in_doubt_settled",
    "Claims written again because the reply to the first try was lost, by fate.",
    "fate",
    ("booked", "not_booked"),
)
SWEPT: Final = _counter(
    "swept",
    "What sweeps found left undone and did.",
    "what",
    ("claims_released", "claims_confirmed", "places_handed_over", "news_told"),
)
FENCES: Final = _counter(
    "fences_closed",
    "States that a process would not use any more, by cause.",
    "cause",
    ("no_state", "other_server", "stale_epoch", "contradiction"),
)
REBUILDS: Final = Histogram(
    "rebuild_seconds", "States made anew, and how long it took.", namespace=_PREFIX, buckets=_SECONDS
)
REBUILDS_FAILED: Final = _counter("rebuilds_failed", "Rebuilds that came to nothing.")
UNAVAILABLE: Final = _counter(
    "unavailable_answers",
    "Answers with status 503, by the problem's code.",
    "code",
    ("busy", "rebuilding", "gate_unreachable", "unavailable"),
)
CONNECTIONS_REFUSED: Final = _counter("connections_refused", "Connections for which a web worker had no room.")
QUEUE: Final = Gauge(
    "admission_queue_claims",
    "Claims that wait for the script.",
    namespace=_PREFIX,
    multiprocess_mode="livesum",
)
LAST_ROUND: Final = Gauge(
    "worker_last_round_timestamp_seconds",
    "When a background worker last ended a round, by Redis's clock.",
    namespace=_PREFIX,
    multiprocess_mode="max",
)
