"""A small rush in which every promise holds, for tests to break."""

import msgspec

from loadtest import wire
from loadtest.behaviour import Wish
from loadtest.evidence import Evidence
from loadtest.history import History, Kind, Level, Operation, PoolFacts, ReleaseFacts, Seat

MORNING, NOON, LATE_MORNING = "pool-morning", "pool-noon", "pool-late-morning"


def seat(person: str, pool: str, place_no: int | None, status: str = "confirmed") -> Seat:
    return Seat(person, pool, place_no, status)


class Rush:
    """Collects what phones would have recorded."""

    def __init__(self) -> None:
        self.history = History()
        self.release = ReleaseFacts(
            id="release",
            title="A small release",
            opens_at="2026-12-01T01:00:00+00:00",
            person_limit=1,
            account_limit=2,
            pools=(
                PoolFacts(MORNING, "morning", 2, 2, 1000.0, 2000.0),
                PoolFacts(NOON, "noon", 2, 2, 5000.0, 6000.0),
                PoolFacts(LATE_MORNING, "late morning", 1, 1, 1500.0, 2500.0),
            ),
        )
        self.audit: wire.Audit | None = wire.Audit(
            "release", 5, 5, 2, 0, 0, 0, consistent=True, gate=wire.GateCounts(0, 5, 0, 2)
        )

    def wish(self, claim: str, parent: int, people: tuple[str, ...], *choices: str, together: bool = True) -> None:
        self.history.wishes[claim] = Wish(claim, people, choices, together, waitlist=True)
        self.history.senders[claim] = parent
        self.history.endings.setdefault(parent, "refused")

    def say(
        self,
        claim: str,
        at_s: float,
        status: int,
        outcome: str,
        seats: tuple[Seat, ...] = (),
        *,
        kind: Kind = Kind.CLAIM,
        lasted_s: float = 0.01,
        final: bool = False,
        seq: int | None = None,
        decided_at_s: float | None = None,
        after_rush: bool = False,
    ) -> None:
        self.history.operations.append(
            Operation(
                kind=kind,
                parent=self.history.senders[claim],
                claim=claim,
                due_s=at_s,
                started_s=at_s,
                ended_s=at_s + lasted_s,
                status=status,
                outcome=outcome,
                final=final,
                seq=seq,
                decided_at_s=decided_at_s,
                seats=seats,
                after_rush=after_rush,
            )
        )

    def confirm(self, claim: str, at_s: float, *seats: Seat) -> None:
        """Promise places, and show them again after the rush: the claim, its echo, its owner's list."""
        self.say(claim, at_s, 201, "confirmed", seats, decided_at_s=at_s + 0.005, seq=1)
        self.say(claim, 10.0, 200, "confirmed", seats, decided_at_s=at_s + 0.005, after_rush=True)
        self.say(claim, 11.0, 200, "confirmed", seats, kind=Kind.CLAIM_STATUS, after_rush=True)
        parent = self.history.senders[claim]
        self.history.listed[parent] = {**self.history.listed.get(parent, {}), claim: "confirmed"}
        self.history.endings[parent] = "holds"

    def wait(self, claim: str, at_s: float, seq: int, waiting: Seat) -> None:
        self.say(claim, at_s, 202, "waitlisted", (waiting,), seq=seq)
        self.say(claim, 11.0, 200, "waitlisted", (waiting,), kind=Kind.CLAIM_STATUS, seq=seq, after_rush=True)
        self.history.endings[self.history.senders[claim]] = "waits"

    def change(self, claim: str, **changes: object) -> None:
        """Change every answer about one claim."""
        self.history.operations = [
            msgspec.structs.replace(o, **changes) if o.claim == claim else o for o in self.history.operations
        ]

    def evidence(self) -> Evidence:
        return Evidence(self.release, self.history, self.audit)


def healthy_rush() -> Rush:
    """Five places in three pools, all taken; one final no; two who wait in the morning."""
    rush = Rush()
    rush.wish("alone", 1, ("a",), MORNING, NOON)
    rush.wish("siblings", 2, ("b1", "b2"), NOON)
    rush.wish("second", 3, ("c",), MORNING)
    rush.wish("late", 4, ("d",), LATE_MORNING)
    rush.wish("refused", 5, ("e",), MORNING)
    rush.wish("waits-first", 6, ("f",), MORNING)
    rush.wish("waits-next", 7, ("g",), MORNING)
    rush.confirm("alone", 0.01, seat("a", MORNING, 1))
    rush.confirm("siblings", 0.02, seat("b1", NOON, 1), seat("b2", NOON, 2))
    rush.confirm("second", 0.03, seat("c", MORNING, 2))
    rush.confirm("late", 0.04, seat("d", LATE_MORNING, 1))
    rush.say("refused", 0.5, 409, "sold_out", final=True)
    rush.wait("waits-first", 0.6, 6, seat("f", MORNING, None, "waitlisted"))
    rush.wait("waits-next", 0.7, 7, seat("g", MORNING, None, "waitlisted"))
    rush.history.levels = [Level(-0.5, (2, 2, 1), (0, 0, 0)), Level(9.0, (0, 0, 0), (2, 0, 0))]
    return rush
