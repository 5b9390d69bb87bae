"""The moments whose work is counted: each is one tick of one worker, played with seeded families on a new release."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from tests.work.figures import Figures
from tests.work.stage import EnteredRelease, Stage

# Enough for everybody who comes.
_ROOM: Final = 50
# As many sessions as a town's release has.
_SESSIONS: Final = 14
_SIBLINGS: Final = 3
# How long ago the last poll was, so that its answer is old.
_POLL_AGE_SECONDS: Final = 1


class Scenario(NamedTuple):
    """A tick of so many claims, or questions, and how to play it."""

    claims: int
    play: Callable[[Stage, int], Awaitable[Figures]]


async def _sold_out_release(stage: Stage, *, more: tuple[int, ...] = (), waitlist_limit: int = 0) -> EnteredRelease:
    """Publish a release whose first two pools are full, for good; `more` pools stand behind them."""
    release = await stage.release(places=(1, 1, *more), waitlist_limit=waitlist_limit)
    for ordinal in (0, 1):
        (first,) = stage.phones(release, 1)
        await stage.ask(release, [first.claim([ordinal])], word="confirmed")
    return release


async def _refusals(stage: Stage, claims: int) -> Figures:
    release = await _sold_out_release(stage)
    phones = stage.phones(release, claims)
    # Now the worker has seen their passes.
    await stage.ask(release, [phone.claim() for phone in phones], word="sold_out")
    return await stage.measure(release, [phone.claim() for phone in phones], word="sold_out")


async def _refusals_of_new_passes(stage: Stage, claims: int) -> Figures:
    release = await _sold_out_release(stage)
    return await stage.measure(release, [phone.claim() for phone in stage.phones(release, claims)], word="sold_out")


async def _refusals_of_two_choices(stage: Stage, claims: int) -> Figures:
    release = await _sold_out_release(stage)
    return await stage.measure(
        release, [phone.claim([1, 0]) for phone in stage.phones(release, claims)], word="sold_out"
    )


async def _winners(stage: Stage, claims: int) -> Figures:
    release = await stage.release(places=(_ROOM,))
    return await stage.measure(release, [phone.claim() for phone in stage.phones(release, claims)], word="confirmed")


async def _siblings(stage: Stage, claims: int) -> Figures:
    """Three children stay together, and the last of their three choices has room."""
    release = await _sold_out_release(stage, more=(_ROOM,))
    phones = stage.phones(release, claims, people=_SIBLINGS)
    return await stage.measure(release, [phone.claim([0, 1, 2]) for phone in phones], word="confirmed")


async def _waiters(stage: Stage, claims: int) -> Figures:
    release = await _sold_out_release(stage, waitlist_limit=_ROOM)
    phones = stage.phones(release, claims)
    return await stage.measure(release, [phone.claim(waitlist=True) for phone in phones], word="waitlisted")


async def _repeated(stage: Stage, claims: int) -> Figures:
    """Winners whose answer was lost send the same again, after PostgreSQL has them."""
    release = await stage.release(places=(_ROOM,))
    asking = [phone.claim() for phone in stage.phones(release, claims)]
    await stage.ask(release, asking, word="confirmed")
    return await stage.measure(release, asking, word="confirmed")


async def _questions(stage: Stage, claims: int) -> Figures:
    release = await stage.release(places=(_ROOM,))
    phones = [(phone, stage.new_id()) for phone in stage.phones(release, claims)]
    await stage.ask(release, [phone.claim(claim_id=claim_id) for phone, claim_id in phones], word="confirmed")
    return await stage.measure(release, [phone.question(claim_id) for phone, claim_id in phones], word="confirmed")


async def _kept_polls(stage: Stage, claims: int) -> Figures:
    release = await stage.release(places=(1,) * _SESSIONS)
    phones = stage.phones(release, claims)
    await stage.ask(release, [phone.poll() for phone in phones], word="")
    return await stage.measure(release, [phone.poll() for phone in phones], word="")


async def _old_polls(stage: Stage, claims: int) -> Figures:
    release = await stage.release(places=(1,) * _SESSIONS)
    phones = stage.phones(release, claims)
    await stage.ask(release, [phone.poll() for phone in phones], word="")
    stage.clock.put_forward(_POLL_AGE_SECONDS)
    return await stage.measure(release, [phone.poll() for phone in phones], word="")


async def _giving_back(stage: Stage, _: int) -> Figures:
    release = await stage.release(places=(_ROOM,))
    (phone,) = stage.phones(release, 1)
    claim_id = stage.new_id()
    await stage.ask(release, [phone.claim(claim_id=claim_id)], word="confirmed")
    return await stage.measure_giving_back(release, phone, claim_id)


async def _handing_over(stage: Stage, _: int) -> Figures:
    release = await stage.release(places=(1,), waitlist_limit=_ROOM)
    first, second = stage.phones(release, 2)
    claim_id = stage.new_id()
    await stage.ask(release, [first.claim(claim_id=claim_id)], word="confirmed")
    await stage.ask(release, [second.claim(waitlist=True)], word="waitlisted")
    return await stage.measure_giving_back(release, first, claim_id)


# Winners are fewer in a tick than a full call takes: of two calls at a time the winners may share a commit, or not.
SCENARIOS: Final[Mapping[str, Scenario]] = {
    "refusal_of_a_new_pass": Scenario(1, _refusals_of_new_passes),
    "refusal": Scenario(1, _refusals),
    "refusals_20": Scenario(20, _refusals),
    "refusals_100": Scenario(100, _refusals),
    "refusals_of_two_choices_20": Scenario(20, _refusals_of_two_choices),
    "winner": Scenario(1, _winners),
    "winners_20": Scenario(20, _winners),
    "winners_40": Scenario(40, _winners),
    "siblings": Scenario(1, _siblings),
    "siblings_10": Scenario(10, _siblings),
    "waiter": Scenario(1, _waiters),
    "waiters_20": Scenario(20, _waiters),
    "repeated_claim": Scenario(1, _repeated),
    "repeated_claims_20": Scenario(20, _repeated),
    "question": Scenario(1, _questions),
    "poll_from_memory": Scenario(1, _kept_polls),
    "poll_of_redis": Scenario(1, _old_polls),
    "polls_of_redis_20": Scenario(20, _old_polls),
    "giving_back": Scenario(1, _giving_back),
    "handing_over": Scenario(1, _handing_over),
}
