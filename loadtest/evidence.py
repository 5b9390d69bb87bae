"""What the verdict rests on: the record of a rush and the audit, with what follows from them worked out once."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from loadtest import wire
from loadtest.history import History, Operation, PoolFacts, ReleaseFacts, Seat
from loadtest.stories import ClaimStory, live_seats, tell

# Beside the error of the clock reading: scheduling between an answer's arrival and its time stamp.
_SLACK_SECONDS: Final = 0.05


@dataclass
class Evidence:
    """All that the verdict rests on. `held_before` counts places held before the crowd came."""

    release: ReleaseFacts
    history: History
    audit: wire.Audit | None
    held_before: int = 0
    clock_error_seconds: float = 0.0

    @cached_property
    def stories(self) -> dict[str, ClaimStory]:
        """The history by claim."""
        return tell(self.history)

    @cached_property
    def pools(self) -> dict[str, PoolFacts]:
        """The pools by id."""
        return {pool.id: pool for pool in self.release.pools}

    @cached_property
    def live(self) -> list[tuple[ClaimStory, Seat]]:
        """The places held after the rush, as far as the phones know."""
        return live_seats(self.stories.values())

    @cached_property
    def waited(self) -> dict[str, list[Operation]]:
        """Answers that said `waitlisted`, by claim, in the order they ended."""
        said: dict[str, list[Operation]] = {}
        for claim_id, story in self.stories.items():
            answers = [o for o in story.told if o.outcome == "waitlisted"]
            if answers:
                said[claim_id] = answers
        return said

    @cached_property
    def taken_at_s(self) -> dict[str, list[float]]:
        """When places of each pool were taken, sorted; places passed on to a waiter are not among them."""
        moments: dict[str, list[float]] = defaultdict(list)
        for claim_id, story in self.stories.items():
            if story.yes is None or claim_id in self.waited:
                continue
            # Without a time of the server's, the time the phone heard it is the latest it can have been.
            decided_at_s = story.yes.decided_at_s
            at_s = story.yes.ended_s if decided_at_s is None else decided_at_s
            for seat in story.seats:
                moments[seat.pool].append(at_s)
        return {pool: sorted(times) for pool, times in moments.items()}

    @cached_property
    def tolerance_seconds(self) -> float:
        """How far apart the server's times and the crowd's may be."""
        return self.clock_error_seconds + _SLACK_SECONDS
