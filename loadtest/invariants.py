"""What must hold after a rush, as far as a client can see it: section 9 of the seat protocol, and what follows from it.

Each check reads the evidence and answers what breaks the promise, in sentences for the operator; an empty list keeps
it. The checks are sound rather than complete: where concurrency leaves two readings, the innocent one is taken.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

from loadtest.evidence import Evidence
from loadtest.history import Kind, Operation, PoolFacts, Seat
from loadtest.stories import ClaimStory

_SERVER_ERROR: Final = 500
_UNAVAILABLE: Final = 503
_NOT_FOUND: Final = 404


def double_holders(evidence: Evidence) -> list[str]:
    """Name every place that two claims held at the same time."""
    holders: dict[tuple[str, int | None], list[tuple[ClaimStory, Seat]]] = defaultdict(list)
    for story in evidence.stories.values():
        for seat in story.seats:
            holders[seat.pool, seat.place_no].append((story, seat))
    broken: list[str] = []
    for (pool, place_no), held in holders.items():
        in_turn = sorted(held, key=lambda pair: pair[0].yes.ended_s if pair[0].yes else 0.0)
        for (before, _), (after, _) in pairwise(in_turn):
            given_back = before.give_back
            # Given back before the next one heard of it: one after the other. A give-back found out later: the same.
            passed_on = given_back is not None and after.yes and given_back.started_s <= after.yes.ended_s
            if not passed_on and not before.is_cancelled_in_doubt:
                broken.append(f"place {place_no} of pool {pool}: {before.wish.claim_id}, {after.wish.claim_id}")
    return broken


def one_holder_a_place(evidence: Evidence) -> list[str]:
    """Protocol 9.1: at most one live holder a place, seen by the phones and by PostgreSQL."""
    broken = double_holders(evidence)
    if evidence.audit is not None and evidence.audit.double_held:
        broken.append(f"PostgreSQL shows {evidence.audit.double_held} places held twice")
    return broken


def capacity_holds(evidence: Evidence) -> list[str]:
    """Protocol 9.1: at most `capacity` a pool."""
    counts: dict[str, int] = defaultdict(int)
    for _, seat in evidence.live:
        counts[seat.pool] += 1
    broken = [
        f"pool {pool}: {count} promised, {evidence.pools[pool].left_before} to take"
        for pool, count in counts.items()
        if pool in evidence.pools and count > evidence.pools[pool].left_before
    ]
    if evidence.audit is not None and evidence.audit.over_capacity:
        broken.append(f"PostgreSQL shows {evidence.audit.over_capacity} places over capacity")
    return broken


def limits_hold(evidence: Evidence) -> list[str]:
    """Protocol 9.1: limits per person and per account."""
    per_person: dict[str, int] = defaultdict(int)
    per_account: dict[int, int] = defaultdict(int)
    for story, seat in evidence.live:
        per_person[seat.person] += 1
        per_account[story.parent] += 1
    release = evidence.release
    return [f"person {who}: {n} places" for who, n in per_person.items() if n > release.person_limit] + [
        f"parent {who}: {n} places" for who, n in per_account.items() if n > release.account_limit
    ]


def nobody_in_two_places_at_once(evidence: Evidence) -> list[str]:
    """Protocol 9.1: no person holds two places whose times overlap."""
    spans: dict[str, list[PoolFacts]] = defaultdict(list)
    for _, seat in evidence.live:
        if seat.pool in evidence.pools:
            spans[seat.person].append(evidence.pools[seat.pool])
    broken: list[str] = []
    for person, pools in spans.items():
        for before, after in pairwise(sorted(pools, key=lambda pool: pool.starts_at_s)):
            if after.starts_at_s < before.ends_at_s:
                broken.append(f"person {person}: {before.title} and {after.title}")
    return broken


def lost_promises(evidence: Evidence) -> list[tuple[str, int]]:
    """Answer the claims whose yes did not last, each with its number of places.

    A promise lasts when the claim itself still says so with the same places, and its owner's list shows it.
    """
    lost: list[tuple[str, int]] = []
    for claim_id, story in evidence.stories.items():
        if not story.is_live:
            continue
        seen = story.sighting
        kept = seen is None or (seen.is_yes and _places(seen) == _places(story.yes))
        listed = evidence.history.listed.get(story.parent)
        if listed is not None and listed.get(claim_id) != "confirmed":
            kept = False
        if not kept:
            lost.append((claim_id, len(story.seats)))
    return lost


def _places(operation: Operation | None) -> frozenset[tuple[str, str, int | None]]:
    if operation is None:
        return frozenset()
    return frozenset((s.person, s.pool, s.place_no) for s in operation.seats if s.status == "confirmed")


def every_yes_is_kept(evidence: Evidence) -> list[str]:
    """Protocol 9.2: every yes is still there, unless its owner gave it back."""
    return [f"claim {claim_id}: {places} places promised, not there" for claim_id, places in lost_promises(evidence)]


def promised_is_what_is_held(evidence: Evidence) -> list[str]:
    """Protocol 9.2: PostgreSQL holds as many places as the phones were promised and kept; none belongs to a ghost."""
    if evidence.audit is None:
        return []
    held = evidence.audit.held - evidence.held_before
    promised = len(evidence.live)
    return [] if held == promised else [f"PostgreSQL holds {held} places, the phones were promised {promised}"]


def no_yes_after_a_final_no(evidence: Evidence) -> list[str]:
    """Protocol 9.3: a claim that heard a final no is never booked, nor shows in its owner's list."""
    broken: list[str] = []
    for claim_id, story in evidence.stories.items():
        nos = [operation.ended_s for operation in story.told if operation.is_final_no]
        if not nos:
            continue
        # Its first yes: where that was on its way together with the no, `same_claim_same_answer` decides.
        if story.yes is not None and story.yes.started_s > min(nos):
            broken.append(f"claim {claim_id}: a yes after a final no")
        elif story.yes is None and evidence.history.listed.get(story.parent, {}).get(claim_id) == "confirmed":
            broken.append(f"claim {claim_id}: a final no, and yet booked")
    return broken


def same_claim_same_answer(evidence: Evidence) -> list[str]:
    """Protocol 9.4: the same id gets the same answer: the same places, and no refusal beside or after a yes."""
    give_backs = [o for o in evidence.history.operations if o.kind is Kind.CANCEL]
    return [
        f"claim {claim_id}: {what}"
        for claim_id, story in evidence.stories.items()
        for what in _contradictions(story, give_backs)
    ]


def _contradictions(story: ClaimStory, give_backs: list[Operation]) -> Iterator[str]:
    places: dict[str, tuple[str, int | None]] = {}
    for operation in story.told:
        for seat in operation.seats if operation.is_yes else ():
            if seat.status == "confirmed" and places.setdefault(seat.person, (seat.pool, seat.place_no)) != (
                seat.pool,
                seat.place_no,
            ):
                yield f"first place {places[seat.person][1]}, then place {seat.place_no}"
    if story.yes is None:
        return
    ours_back = min((o.started_s for o in story.told if o.kind is Kind.CANCEL), default=float("inf"))
    for operation in story.told:
        if operation.kind not in {Kind.CLAIM, Kind.CLAIM_STATUS} or operation.ended_s >= ours_back:
            continue
        refused = operation.outcome == "pending" or 400 <= operation.status < 500  # noqa: PLR2004 - RFC 9110
        if refused and operation.status != 429 and operation.started_s > story.yes.ended_s:  # noqa: PLR2004 - busy
            yield f"{operation.outcome} after a yes"
        # Between two taps a place may come back; then no and yes are both true, each in its turn.
        elif (
            operation.is_final_no
            and _overlap(operation, story.yes)
            and not any(_overlap(back, operation) or _overlap(back, story.yes) for back in give_backs)
        ):
            yield f"{operation.outcome} beside a yes"


def _overlap(one: Operation, other: Operation) -> bool:
    return one.started_s <= other.ended_s and other.started_s <= one.ended_s


def gate_and_postgres_agree(evidence: Evidence) -> list[str]:
    """Protocol 9.5: at rest the gate counts what PostgreSQL counts, and nothing is pending."""
    audit = evidence.audit
    if audit is None:
        return []
    broken = [] if audit.consistent else ["the audit calls itself inconsistent"]
    if audit.gate is not None:
        counts = (
            ("free", audit.free, audit.gate.free),
            ("held", audit.held, audit.gate.held),
            ("waiting", audit.waiting, audit.gate.waiting),
            ("pending", 0, audit.gate.pending),
        )
        broken += [f"{word}: PostgreSQL {truth}, gate {said}" for word, truth, said in counts if truth != said]
    return broken


def leaked_places(evidence: Evidence) -> dict[str, int]:
    """Count, by pool, places free at the end although somebody wanted one there.

    A place that came back after everybody had gone home is nobody's loss. One that somebody still waited or watched
    for is; so is one that never found a taker although a claim for one person there was refused.
    """
    if not evidence.history.levels:
        return {}
    last = evidence.history.levels[-1]
    returned: dict[str, int] = defaultdict(int)
    refused: set[str] = set()
    for story in evidence.stories.values():
        if story.give_back is not None:
            for seat in story.seats:
                returned[seat.pool] += 1
        alone = len(story.wish.people) == 1 or not story.wish.together
        if alone and story.yes is None and any(o.outcome in {"full", "sold_out"} for o in story.told):
            refused.update(story.wish.choices)
    still_wanted = {pool for lingering in evidence.history.lingering for pool in lingering.pools}
    leaked: dict[str, int] = {}
    for pool, left, waiting in zip(evidence.release.pools, last.left, last.waiting, strict=True):
        wanted_now = pool.id in still_wanted or waiting > 0
        places = left if wanted_now else max(0, left - returned[pool.id]) if pool.id in refused else 0
        if places:
            leaked[pool.id] = places
    audit = evidence.audit
    hidden = 0 if audit is None else audit.free - sum(last.left)
    if hidden > 0 and (still_wanted or refused):
        leaked["free in PostgreSQL, not offered by the gate"] = hidden
    return leaked


def nothing_leaks(evidence: Evidence) -> list[str]:
    """Protocol 9.5: with enough demand every place is filled."""
    return [f"{places} free: {pool}" for pool, places in leaked_places(evidence).items()]


def no_sold_out_while_a_place_is_free(evidence: Evidence) -> list[str]:
    """Protocol 9.6: a final no only where every pool of the claim had been filled by then."""
    if evidence.held_before:
        # Places that others take or give back are not in this history.
        return []
    broken: list[str] = []
    for claim_id, story in evidence.stories.items():
        needed = len(story.wish.people) if story.wish.together else 1
        for operation in story.told:
            if not operation.is_final_no:
                continue
            latest_s = operation.ended_s + evidence.tolerance_seconds
            for pool_id in story.wish.choices:
                pool = evidence.pools.get(pool_id)
                if pool is None:
                    continue
                gone = bisect_right(evidence.taken_at_s.get(pool_id, []), latest_s)
                if pool.left_before - gone >= needed:
                    broken.append(f"claim {claim_id}: final no at {operation.ended_s:.3f} s, {pool.title} not full")
    return broken


def waiting_order_kept(evidence: Evidence) -> list[str]:
    """Protocol 9.7: the queue moves in order, and no newcomer passes a waiter."""
    queues: dict[str, list[ClaimStory]] = defaultdict(list)
    for claim_id, answers in evidence.waited.items():
        story = evidence.stories[claim_id]
        if len(story.wish.people) == 1 and answers[0].seats:
            queues[answers[0].seats[0].pool].append(story)
    broken: list[str] = []
    for pool, queue in queues.items():
        numbered = sorted((evidence.waited[s.wish.claim_id][0].seq or 0, s.wish.claim_id) for s in queue)
        promoted = [evidence.stories[claim_id].yes is not None for _, claim_id in numbered]
        for place, (_, claim_id) in enumerate(numbered):
            gone = promoted[place] or evidence.stories[claim_id].give_back is not None
            if not gone and any(promoted[place + 1 :]):
                broken.append(f"pool {pool}: claim {claim_id} was passed by a later waiter")
        for story in queue:
            answers = evidence.waited[story.wish.claim_id]
            broken += [
                f"pool {pool}: claim {newcomer.wish.claim_id} passed the waiting {story.wish.claim_id}"
                for newcomer in _newcomers(evidence, pool)
                if newcomer.yes is not None
                and answers[0].ended_s < newcomer.asked_s
                and answers[-1].started_s > newcomer.yes.ended_s
            ]
    return broken


def _newcomers(evidence: Evidence, pool: str) -> Iterator[ClaimStory]:
    for claim_id, story in evidence.stories.items():
        if claim_id not in evidence.waited and any(seat.pool == pool for seat in story.seats):
            yield story


def together_is_all_or_nothing(evidence: Evidence) -> list[str]:
    """Protocol 9.10: a claim made together holds a place for each of its people in one pool, or none."""
    broken: list[str] = []
    for claim_id, story in evidence.stories.items():
        if not story.wish.together or len(story.wish.people) == 1:
            continue
        for operation in story.told:
            # A refusal may show a booking of another claim (already_booked).
            if operation.status >= 400:  # noqa: PLR2004 - RFC 9110: errors begin here
                continue
            people = {seat.person for seat in operation.seats if seat.status == "confirmed"}
            pools = {seat.pool for seat in operation.seats if seat.status == "confirmed"}
            if people and (people != set(story.wish.people) or len(pools) != 1):
                broken.append(f"claim {claim_id}: {len(people)} of {len(story.wish.people)} in {len(pools)} pools")
                break
    return broken


def answers_fit_the_wish(evidence: Evidence) -> list[str]:
    """See that a yes names people and pools of its own claim, each person once, with numbered places."""
    broken: list[str] = []
    for claim_id, story in evidence.stories.items():
        people = [seat.person for seat in story.seats]
        fits = (
            set(people) <= set(story.wish.people)
            and len(people) == len(set(people))
            and all(s.pool in story.wish.choices and s.place_no is not None for s in story.seats)
        )
        if not fits or (story.yes is not None and not story.seats):
            broken.append(f"claim {claim_id}: the answer does not fit what was asked")
    return broken


def nobody_before_the_opening(evidence: Evidence) -> list[str]:
    """Protocol 3.3: no claim is decided before the opening second, by the server's own clock."""
    return [
        f"claim {claim_id}: decided {-operation.decided_at_s * 1000:.0f} ms early"
        for claim_id, story in evidence.stories.items()
        for operation in story.told
        if operation.is_yes and operation.decided_at_s is not None and operation.decided_at_s < 0
    ]


def everybody_was_answered(evidence: Evidence) -> list[str]:
    """Every parent had a final answer in the end, and every promise could be asked about."""
    unanswered = [number for number, ending in evidence.history.endings.items() if ending == "unanswered"]
    broken = [f"{len(unanswered)} parents had no final answer"] if unanswered else []
    unseen = sum(story.is_live and story.sighting is None for story in evidence.stories.values())
    return broken + ([f"{unseen} promises could not be asked about"] if unseen else [])


def no_server_error(evidence: Evidence) -> list[str]:
    """Overload is said as 429 or 503; any other 5xx is a defect."""
    counts: dict[str, int] = defaultdict(int)
    for operation in evidence.history.operations:
        if operation.status >= _SERVER_ERROR and operation.status != _UNAVAILABLE:
            counts[f"{operation.kind} {operation.status}"] += 1
    return [f"{what}: {count} times" for what, count in counts.items()]


CHECKS: Final[dict[str, Callable[[Evidence], list[str]]]] = {
    check.__name__: check
    for check in (
        one_holder_a_place,
        capacity_holds,
        limits_hold,
        nobody_in_two_places_at_once,
        every_yes_is_kept,
        promised_is_what_is_held,
        no_yes_after_a_final_no,
        same_claim_same_answer,
        gate_and_postgres_agree,
        nothing_leaks,
        no_sold_out_while_a_place_is_free,
        waiting_order_kept,
        together_is_all_or_nothing,
        answers_fit_the_wish,
        nobody_before_the_opening,
        everybody_was_answered,
        no_server_error,
    )
}
