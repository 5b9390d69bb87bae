"""How far a rehearsal is: one small object, handed out as it changes, for whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """The acts of a rehearsal, in order."""

    SIGNING_IN = "signing_in"
    PASSES = "passes"
    CONNECTING = "connecting"
    COUNTDOWN = "countdown"
    RUSH = "rush"
    SETTLING = "settling"
    CHECKING = "checking"
    DONE = "done"


@dataclass(slots=True)
class PoolProgress:
    """Places of one pool, as availability showed them last."""

    title: str
    capacity: int
    left: int


@dataclass(slots=True)
class Progress:
    """The state of a rehearsal now. `done` of `total` counts parents within the phase."""

    phase: Phase = Phase.SIGNING_IN
    done: int = 0
    total: int = 0
    # Negative once the release is open; None before it is known.
    opens_in_seconds: float | None = None
    elapsed_seconds: float = 0.0
    pools: list[PoolProgress] = field(default_factory=list[PoolProgress])
    places: int = 0
    held: int = 0
    waiting: int = 0
    answers: int = 0
    refusals: dict[str, int] = field(default_factory=dict[str, int])


ProgressSink = Callable[[Progress], None]


def show_nothing(_: Progress) -> None:
    """Be a sink for those who do not watch."""
