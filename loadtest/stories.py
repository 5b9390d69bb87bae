"""The history sorted by claim: what was wished, what was said about it, and how it stands after the rush."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from loadtest.behaviour import Wish
from loadtest.history import History, Kind, Operation, Seat

_LIVE_STATES = frozenset({"confirmed", "waitlisted", "offered"})


@dataclass
class ClaimStory:
    """One claim. `told` are all answers about it in the order they ended, those after the rush included."""

    wish: Wish
    parent: int
    told: list[Operation] = field(default_factory=list[Operation])

    @cached_property
    def yes(self) -> Operation | None:
        """The first answer that promised places."""
        return next((operation for operation in self.told if operation.is_yes), None)

    @cached_property
    def asked_s(self) -> float:
        """When the first request for it left."""
        return min(operation.started_s for operation in self.told)

    @cached_property
    def give_back(self) -> Operation | None:
        """The request that gave it back, where that was heard to succeed."""
        return next((o for o in self.told if o.kind is Kind.CANCEL and o.status in {200, 204}), None)

    @cached_property
    def gave_back_in_doubt(self) -> bool:
        """Whether it was asked to be given back and nobody knows whether it was."""
        return self.give_back is None and any(o.kind is Kind.CANCEL and o.status == 0 for o in self.told)

    @cached_property
    def sighting(self) -> Operation | None:
        """How the claim itself stood when all was quiet; None where it was not asked or nothing was heard."""
        after = [o for o in self.told if o.after_rush and o.kind is Kind.CLAIM_STATUS and o.status]
        return after[-1] if after else None

    @cached_property
    def seats(self) -> tuple[Seat, ...]:
        """The places it was promised."""
        return () if self.yes is None else tuple(seat for seat in self.yes.seats if seat.status == "confirmed")

    @property
    def is_live(self) -> bool:
        """Whether its owner has a promise and did not give it back."""
        return self.yes is not None and self.give_back is None and not self.is_cancelled_in_doubt

    @property
    def is_cancelled_in_doubt(self) -> bool:
        """Whether a give-back of unknown outcome turned out to have happened."""
        return self.gave_back_in_doubt and self.sighting is not None and self.sighting.outcome not in _LIVE_STATES


def tell(history: History) -> dict[str, ClaimStory]:
    """Sort the history by claim."""
    stories = {claim_id: ClaimStory(wish, history.senders[claim_id]) for claim_id, wish in history.wishes.items()}
    for operation in sorted(history.operations, key=lambda o: o.ended_s):
        if operation.claim in stories:
            stories[operation.claim].told.append(operation)
    return {claim_id: story for claim_id, story in stories.items() if story.told}


def live_seats(stories: Iterable[ClaimStory]) -> list[tuple[ClaimStory, Seat]]:
    """All places that somebody holds, as far as the phones know."""
    return [(story, seat) for story in stories if story.is_live for seat in story.seats]
