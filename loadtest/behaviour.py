"""What a parent does, without a network: a plan drawn from a seed, and a life that unfolds by what the phone hears.

A life is a generator. It yields steps (rest, look, tap, ask, give back) and is sent the phone's reply to each; whoever
drives it (an asyncio phone, a Locust user, a test) brings the transport. Times are seconds relative to the opening, on
the server's clock, so that two runs of one seed tap at the same moments.
"""

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal

import msgspec

from loadtest.plan import ParentPlan, pool_weights

# Bounds: a parent is stubborn, not endless. Each says how often one claim is sent again for one kind of reply.
_REPEATS_PENDING: Final = 60
_REPEATS_FULL: Final = 3
_REPEATS_EARLY: Final = 10
_REPEATS_BUSY: Final = 15
_REPEATS_UNKNOWN: Final = 10
_REPEATS_VOID: Final = 3
_GIVE_BACK_TRIES: Final = 10
_HOPEFUL_ROUNDS: Final = 80
# Where the server names no time to come back, a phone takes these.
_FULL_AGAIN_SECONDS: Final = 0.3
_PENDING_AGAIN_SECONDS: Final = 0.2
_EARLY_AGAIN_SECONDS: Final = 0.1
_BUSY_AGAIN_SECONDS: Final = 0.5
_UNKNOWN_AGAIN_SECONDS: Final = 0.15
_UNKNOWN_AGAIN_SECONDS_MAX: Final = 2.0
CHOICES_MAX: Final = 4
_SERVER_ERROR: Final = 500


class Wish(msgspec.Struct, frozen=True, gc=False):
    """The body of one claim, with the id the phone chose for it."""

    claim_id: str
    people: tuple[str, ...]
    choices: tuple[str, ...]
    together: bool
    waitlist: bool


class Rest(msgspec.Struct, frozen=True, gc=False):
    """Do nothing until this moment."""

    until: float


class Look(msgspec.Struct, frozen=True, gc=False):
    """Refresh the countdown, or the places left."""

    what: Literal["time", "availability"]


class Tap(msgspec.Struct, frozen=True, gc=False):
    """Send the claim at a moment (now, where none is named); `copies` at once; or lose the reply so long after sending.

    The moment is part of the step so that the phone can have the request ready before it comes.
    """

    wish: Wish
    at: float | None = None
    copies: int = 1
    cut_after_seconds: float | None = None


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Ask: did I get it."""

    claim_id: str


class GiveBack(msgspec.Struct, frozen=True, gc=False):
    """Cancel the whole claim."""

    claim_id: str


Step = Rest | Look | Tap | Ask | GiveBack


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What the phone heard. Status 0: nothing, so the outcome is not known."""

    status: int
    code: str = ""
    state: str = ""
    final: bool = False
    retry_after_seconds: float | None = None
    left: Mapping[str, int] | None = None


NOTHING_HEARD: Final = Reply(0)


class Meaning(Enum):
    """What a reply to a claim means to its parent, best news first."""

    CONFIRMED = auto()
    WAITLISTED = auto()
    HELD_ALREADY = auto()
    PENDING = auto()
    UNKNOWN = auto()
    BUSY = auto()
    TOO_EARLY = auto()
    VOID = auto()
    FULL = auto()
    CLASH = auto()
    SOLD_OUT = auto()
    BARRED = auto()


class Ending(Enum):
    """How a parent's evening ended."""

    HOLDS = "holds"
    WAITS = "waits"
    GAVE_BACK = "gave_back"
    REFUSED = "refused"
    WATCHED = "watched"
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class Ground:
    """What a life stands on: its people, the pools open to each, and the world's clock and end."""

    people: tuple[str, ...]
    eligible: Mapping[str, frozenset[str]]
    # All pools of the release in a stable order; its position decides how sought after a pool is.
    pools: tuple[str, ...]
    now: Callable[[], float]
    is_over: Callable[[], bool]
    new_claim_id: Callable[[], str]
    # Told once, when a parent has had an answer and stays for places that come back, in these pools.
    stays_on: Callable[[frozenset[str]], None]


_CODES: Final[dict[str, Meaning]] = {
    "full": Meaning.FULL,
    "undecided": Meaning.FULL,
    "sold_out": Meaning.SOLD_OUT,
    "already_booked": Meaning.HELD_ALREADY,
    "claim_void": Meaning.VOID,
    "time_clash": Meaning.CLASH,
    "not_open_yet": Meaning.TOO_EARLY,
}
_STATES: Final[dict[str, Meaning]] = {
    "confirmed": Meaning.CONFIRMED,
    "waitlisted": Meaning.WAITLISTED,
    "pending": Meaning.PENDING,
}


def meaning_of(reply: Reply) -> Meaning:
    """Read a reply to a claim as api.md defines it; what it does not define bars the parent."""
    if reply.status in {429, 503}:
        return Meaning.BUSY
    if reply.status == 0 or reply.status >= _SERVER_ERROR:
        return Meaning.UNKNOWN
    if reply.status in {200, 201, 202}:
        return _STATES.get(reply.state, Meaning.BARRED)
    if reply.code == "full" and reply.final:
        return Meaning.SOLD_OUT
    return _CODES.get(reply.code, Meaning.BARRED)


def best_of(replies: Sequence[Reply]) -> Reply:
    """Answer the one a parent believes when two taps were answered: the better news."""
    return min(replies, key=lambda reply: meaning_of(reply).value)


class _Fate(Enum):
    HOLDS = auto()
    WAITS = auto()
    TRY_ELSEWHERE = auto()
    BARRED = auto()
    UNANSWERED = auto()


_REPEATS: Final[dict[Meaning, int]] = {
    Meaning.PENDING: _REPEATS_PENDING,
    Meaning.FULL: _REPEATS_FULL,
    Meaning.TOO_EARLY: _REPEATS_EARLY,
    Meaning.BUSY: _REPEATS_BUSY,
    Meaning.UNKNOWN: _REPEATS_UNKNOWN,
    Meaning.VOID: _REPEATS_VOID,
}

_Script = Generator[Step, Reply, _Fate]


class _Life:
    """One parent's evening. Split in acts; `live` is the door."""

    def __init__(self, plan: ParentPlan, ground: Ground, rng: random.Random) -> None:
        self.plan = plan
        self.ground = ground
        self.rng = rng
        self.ranking = self._rank()
        # The claim pursued last: the one that is held, waits, or is given back.
        self.claim_id = ""

    def _rank(self) -> list[str]:
        """Rank the pools open to all its people: weighted draw without replacement (Efraimidis and Spirakis 2006)."""
        pools = self.ground.pools
        mine = frozenset(pools).intersection(*(self.ground.eligible[p] for p in self.ground.people))
        weights = dict(zip(pools, pool_weights(len(pools)), strict=True))
        drawn = [(self.rng.random() ** (1.0 / weights[pool]), pool) for pool in pools]
        return [pool for _, pool in sorted(drawn, reverse=True) if pool in mine]

    def wish(self, choices: Sequence[str], people: tuple[str, ...] | None = None) -> Wish:
        """Make a new claim with an id of its own."""
        wanted_by = people or self.ground.people
        self.claim_id = self.ground.new_claim_id()
        return Wish(
            self.claim_id,
            wanted_by,
            tuple(choices[:CHOICES_MAX]),
            together=self.plan.together or len(wanted_by) == 1,
            waitlist=self.plan.wants_waitlist,
        )

    def before(self) -> Generator[Step, Reply, None]:
        """Refresh the countdown as an early bird does."""
        for number, moment in enumerate(self.plan.looks_at):
            yield Rest(moment)
            yield Look("availability" if number % 2 else "time")

    def watch(self) -> Generator[Step, Reply, None]:
        """Look at the places going, and claim none."""
        for moment in self.plan.watches_at:
            if self.ground.is_over():
                return
            yield Rest(moment)
            yield Look("availability")

    def pursue(self, first_tap: Tap) -> _Script:
        """Send one claim until its answer settles it; for each kind of reply again a bounded number of times."""
        step: Step = first_tap
        wish = first_tap.wish
        repeats: dict[Meaning, int] = {}
        for _ in range(sum(_REPEATS.values())):
            reply = yield step
            if isinstance(step, Ask) and reply.status == 404:  # noqa: PLR2004 - the claim never arrived
                step = Tap(wish)
                continue
            meaning = meaning_of(reply)
            match meaning:
                case Meaning.CONFIRMED | Meaning.HELD_ALREADY:
                    return _Fate.HOLDS
                case Meaning.WAITLISTED:
                    return _Fate.WAITS
                case Meaning.SOLD_OUT | Meaning.CLASH:
                    return _Fate.TRY_ELSEWHERE
                case Meaning.BARRED:
                    return _Fate.BARRED
                case _:
                    repeats[meaning] = done = repeats.get(meaning, 0) + 1
                    if done > _REPEATS[meaning]:
                        return _Fate.TRY_ELSEWHERE if meaning is Meaning.FULL else _Fate.UNANSWERED
            if meaning is Meaning.VOID:
                # A void id stays void; the same wish goes on under a new one.
                wish = self.wish(wish.choices, wish.people)
            yield Rest(self.ground.now() + self._again_seconds(meaning, reply, done))
            asks_first = meaning is Meaning.UNKNOWN and self.plan.asks_before_repeating
            step = Ask(wish.claim_id) if asks_first else Tap(wish)
        return _Fate.UNANSWERED

    def _again_seconds(self, meaning: Meaning, reply: Reply, done: int) -> float:
        """Say when to come back: as the server asked where it asked, never sooner, and spread."""
        named = reply.retry_after_seconds
        luck = self.rng.random()
        match meaning:
            case Meaning.TOO_EARLY:
                return (_EARLY_AGAIN_SECONDS if named is None else named) + 0.06 * luck
            case Meaning.PENDING:
                return (_PENDING_AGAIN_SECONDS if named is None else named) * (1.0 + 0.3 * luck)
            case Meaning.FULL:
                return (_FULL_AGAIN_SECONDS if named is None else named) * (1.0 + 0.5 * luck)
            case Meaning.BUSY:
                return (_BUSY_AGAIN_SECONDS if named is None else named) * (1.0 + 0.5 * luck)
            case Meaning.VOID:
                return 0.05 * luck
            case _:
                doubled = _UNKNOWN_AGAIN_SECONDS * 2.0 ** (done - 1)
                return min(doubled, _UNKNOWN_AGAIN_SECONDS_MAX) * (0.7 + 0.6 * luck)

    def grab(self) -> _Script:
        """Tap at the planned moment; then, where refused, as often elsewhere as the plan is impatient."""
        tried = 0
        fate = _Fate.BARRED
        for round_no in range(1 + self.plan.second_choices):
            choices = self.ranking[tried : tried + self.plan.choices]
            if not choices:
                break
            tried += len(choices)
            wish = self.wish(choices)
            first = Tap(wish)
            if round_no == 0:
                copies = 2 if self.plan.double_taps else 1
                first = Tap(wish, self.plan.taps_at, copies, self.plan.cut_after_seconds)
            fate = yield from self.pursue(first)
            if fate is not _Fate.TRY_ELSEWHERE:
                break
            yield Rest(self.ground.now() + 0.1 + 0.4 * self.rng.random())
        return fate

    def linger(self) -> Generator[Step, Reply, _Fate]:
        """Keep looking for a place that comes back, and claim it, until the crowd goes home."""
        self.ground.stays_on(frozenset(self.ranking))
        for _ in range(_HOPEFUL_ROUNDS):
            if self.ground.is_over():
                break
            yield Rest(self.ground.now() + self.plan.looks_again_seconds)
            reply = yield Look("availability")
            left = reply.left or {}
            back = [pool for pool in self.ranking if left.get(pool, 0) > 0]
            if back:
                # One child: a single place is what comes back.
                wish = self.wish(back, self.ground.people[:1])
                fate = yield from self.pursue(Tap(wish))
                if fate is not _Fate.TRY_ELSEWHERE:
                    return fate
        return _Fate.TRY_ELSEWHERE

    def wait(self) -> Generator[Step, Reply, Ending]:
        """Ask now and then whether the queue has moved, until the crowd goes home."""
        self.ground.stays_on(frozenset())
        for _ in range(_HOPEFUL_ROUNDS):
            if self.ground.is_over():
                break
            yield Rest(self.ground.now() + self.plan.looks_again_seconds)
            reply = yield Ask(self.claim_id)
            if meaning_of(reply) is Meaning.CONFIRMED:
                return Ending.HOLDS
        return Ending.WAITS

    def give_back(self) -> Generator[Step, Reply, Ending]:
        """Cancel, and see it through."""
        for attempt in range(_GIVE_BACK_TRIES):
            reply = yield GiveBack(self.claim_id)
            if reply.status in {200, 204}:
                return Ending.GAVE_BACK
            meaning = meaning_of(reply)
            if meaning not in {Meaning.BUSY, Meaning.UNKNOWN}:
                return Ending.HOLDS
            yield Rest(self.ground.now() + self._again_seconds(meaning, reply, attempt + 1))
        return Ending.UNANSWERED

    def greedy(self) -> Generator[Step, Reply, None]:
        """Ask for a second session beside the first: limits and clashes in time answer this."""
        rest_of_ranking = self.ranking[self.plan.choices :]
        if rest_of_ranking:
            # No queue: who holds a place already does not wait for a second.
            wish = msgspec.structs.replace(self.wish(rest_of_ranking), waitlist=False)
            yield from self.pursue(Tap(wish))


def live(plan: ParentPlan, ground: Ground, rng: random.Random) -> Generator[Step, Reply, Ending]:
    """Play one parent: yields steps, is sent a `Reply` to each (`NOTHING_HEARD` after a rest), returns the ending."""
    life = _Life(plan, ground, rng)
    yield from life.before()
    if plan.only_watches:
        yield from life.watch()
        return Ending.WATCHED
    fate = yield from life.grab()
    if fate is _Fate.TRY_ELSEWHERE and plan.stays_hopeful:
        fate = yield from life.linger()
        if fate is _Fate.HOLDS:
            return Ending.HOLDS
        return (yield from life.wait()) if fate is _Fate.WAITS else Ending.REFUSED
    match fate:
        case _Fate.HOLDS if plan.gives_back_after_seconds is not None:
            yield Rest(ground.now() + plan.gives_back_after_seconds)
            return (yield from life.give_back())
        case _Fate.HOLDS:
            if plan.wants_another:
                yield from life.greedy()
            return Ending.HOLDS
        case _Fate.WAITS:
            return (yield from life.wait())
        case _Fate.UNANSWERED:
            return Ending.UNANSWERED
        case _:
            return Ending.REFUSED
