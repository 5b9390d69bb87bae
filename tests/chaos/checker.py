"""Decides the invariants of the seat protocol, section 9, on what a round left behind.

Each check answers what breaks its promise, with the claims that show it; nothing means that it held. The checks are
sound rather than complete: where two things happened at the same time, the innocent reading is taken. What the service
itself relies on (constraints, locks) is not relied on here: everything is counted again.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from loadtest.history import Kind, Operation, Seat
from loadtest.stories import ClaimStory
from tests.chaos.evidence import BookingRow, Change, Evidence, Span

# What one fault may cost a release of 300 places, in seconds after it is over.
UNAVAILABLE_SECONDS_MAX: Final = 3.0
# How soon after a storm everything is as before, and by how much a process may grow in one.
BACK_SECONDS_MAX: Final = 2.0
GROWTH_MIB_MAX: Final = 150.0
# The phones' clock and PostgreSQL's are the same; a line is written a moment after its time was read.
_SLACK_SECONDS: Final = 0.05
# A change counts from when it was committed, and others see it only when the disk has it.
_FLUSH_SECONDS_MAX: Final = 0.5
_LIVE: Final = frozenset({"confirmed", "waitlisted"})
# How long after a place was given back the gate may still not know: told at once, or else by the next sweep, which a
# fault may hold up.
_NEWS_SECONDS_MAX: Final = 8.0
# Nobody can be booked under an id that heard one of these: the first two PostgreSQL holds void, and with the others the
# phones of a round stop to ask.
_FINAL_OUTCOMES: Final = frozenset({"claim_void", "time_clash", "limit_reached", "already_booked", "closed"})
_REFUSED: Final = 400
_SERVER_ERROR: Final = 500
_BUSY: Final = frozenset({429, 503})
# 0 is a connection that was given up, by the storm or by its end.
_EXPECTED_IN_A_STORM: Final = frozenset({0, 200, 201, 202, 409, *_BUSY})


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that did not hold: what was seen, and the claims whose story shows it."""

    sentence: str
    claims: tuple[str, ...] = ()


Found = Iterator[Violation]


def one_holder_each_place(evidence: Evidence) -> Found:
    """9.1: at every moment at most one live holder a place, and no place that does not exist."""
    holder: dict[tuple[str, int], Change] = {}
    place_of: dict[str, tuple[str, int]] = {}
    for change in evidence.truth.changes:
        left = place_of.pop(change.booking, None)
        if left is not None and (held := holder.get(left)) is not None and held.booking == change.booking:
            del holder[left]
        if change.status != "confirmed" or change.place_no is None:
            continue
        place = (change.pool, change.place_no)
        if change.place_no not in evidence.pool[change.pool].places:
            yield Violation(f"there is no place {change.place_no} in pool {change.pool}", (change.claim,))
        other = holder.get(place)
        if other is not None:
            yield Violation(f"place {change.place_no} of pool {change.pool} is held twice", (other.claim, change.claim))
        holder[place], place_of[change.booking] = change, place


def limits_hold(evidence: Evidence) -> Found:
    """9.1: at every moment nobody is in two places at once or over a limit, and no person twice in a pool."""
    live: dict[str, Change] = {}
    of_person: dict[str, set[str]] = defaultdict(set)
    of_account: dict[str, set[str]] = defaultdict(set)
    for change in evidence.truth.changes:
        account = evidence.truth.claims[change.claim].account or ""
        before = live.pop(change.booking, None)
        if before is not None:
            of_person[change.person].discard(change.booking)
            of_account[account].discard(change.booking)
        if change.status not in _LIVE:
            continue
        theirs = [live[booking] for booking in of_person[change.person]]
        live[change.booking] = change
        of_person[change.person].add(change.booking)
        of_account[account].add(change.booking)
        if len(of_person[change.person]) > evidence.person_limit:
            yield Violation(f"person {change.person} has too many places", (change.claim,))
        if len(of_account[account]) > evidence.account_limit:
            yield Violation(f"account {account} has too many places", (change.claim,))
        for other in theirs:
            if other.pool == change.pool:
                yield Violation(f"person {change.person} is in a pool twice", (other.claim, change.claim))
            elif {other.status, change.status} == {"confirmed"} and _overlap(evidence, other.pool, change.pool):
                yield Violation(f"person {change.person} is in two places at once", (other.claim, change.claim))


def _overlap(evidence: Evidence, one: str, other: str) -> bool:
    first, second = evidence.pool[one], evidence.pool[other]
    return first.starts_at_s < second.ends_at_s and second.starts_at_s < first.ends_at_s


def every_yes_is_kept(evidence: Evidence) -> Found:
    """9.2: who heard "yes" is in PostgreSQL with that place, unless they asked to give it back."""
    for claim_id, story in evidence.stories.items():
        rows = {booking.person: booking for booking in evidence.bookings_of.get(claim_id, ())}
        gave_back = any(o.kind is Kind.CANCEL for o in story.told)
        for operation in story.told:
            if operation.status >= _REFUSED:
                continue
            for seat in operation.seats:
                row = rows.get(seat.person)
                if row is None:
                    yield Violation(f"{_said(seat)}, and PostgreSQL has nothing of it", (claim_id,))
                elif not gave_back and not _is_as_promised(seat, row):
                    yield Violation(f"{_said(seat)}, and PostgreSQL has {row.status} {row.place_no}", (claim_id,))


def _said(seat: Seat) -> str:
    return f"person {seat.person} was told {seat.status} {seat.place_no} in pool {seat.pool}"


def _is_as_promised(seat: Seat, row: BookingRow) -> bool:
    if seat.pool != row.pool:
        return False
    if seat.status == "confirmed":
        return row.status == "confirmed" and row.place_no == seat.place_no
    # Who waits may get a place, or leave the queue for one at the same hour.
    return seat.status != "waitlisted" or (
        row.wait_seq is not None and (row.status in _LIVE or row.cancelled_reason == "time_clash")
    )


def nothing_else_is_booked(evidence: Evidence) -> Found:
    """9.2: what is booked is what a phone asked for: its people, in pools that it named."""
    for claim_id, rows in evidence.bookings_of.items():
        story = evidence.stories.get(claim_id)
        if story is None:
            # In a storm strangers claim, whom nobody writes down.
            if evidence.strain is None:
                yield Violation("it is booked, and nobody asked for it", (claim_id,))
            continue
        for row in rows:
            if row.person not in story.wish.people or row.pool not in story.wish.choices:
                yield Violation(f"person {row.person} is booked in pool {row.pool}, which was not asked", (claim_id,))


def a_final_no_is_final(evidence: Evidence) -> Found:
    """9.3: nobody is booked under a claim that heard a final "no"."""
    for claim_id, story in evidence.stories.items():
        final = [o for o in story.told if o.is_final_no or o.outcome in _FINAL_OUTCOMES]
        if final and evidence.bookings_of.get(claim_id):
            yield Violation(f"it heard {final[0].outcome} and is booked", (claim_id,))


def one_answer_each_claim(evidence: Evidence) -> Found:
    """9.4: the same claim id gets the same answer: the same places, and no refusal after a "yes"."""
    for claim_id, story in evidence.stories.items():
        places: dict[str, tuple[str, int | None]] = {}
        for operation in story.told:
            if operation.status >= _REFUSED:
                continue
            for seat in operation.seats:
                if seat.status != "confirmed":
                    continue
                first = places.setdefault(seat.person, (seat.pool, seat.place_no))
                if first != (seat.pool, seat.place_no):
                    yield Violation(f"first place {first[1]}, then place {seat.place_no}", (claim_id,))
        yield from _refused_after_a_yes(claim_id, story)


def _refused_after_a_yes(claim_id: str, story: ClaimStory) -> Found:
    booked = next((o for o in story.told if o.is_yes or o.outcome == "waitlisted"), None)
    if booked is None:
        return
    gives_back_s = min((o.started_s for o in story.told if o.kind is Kind.CANCEL), default=float("inf"))
    for operation in story.told:
        is_refusal = operation.status >= _REFUSED and operation.status not in _BUSY and operation.status < _SERVER_ERROR
        if is_refusal and operation.started_s > booked.ended_s and operation.ended_s < gives_back_s:
            yield Violation(f"{operation.outcome} after {booked.outcome}", (claim_id,))


def gate_and_postgresql_agree(evidence: Evidence) -> Found:
    """9.5: at rest both know the same claims, people, accounts, waiters and free places, and nothing is pending."""
    seen, truth = evidence.gate, evidence.truth.state
    if seen is None:
        yield Violation("the gate has no state in force")
        return
    for what in ("claims", "people", "accounts", "waiting", "free"):
        said: Mapping[object, object] = getattr(seen.state, what)
        is_so: Mapping[object, object] = getattr(truth, what)
        differing = sorted(str(key) for key in {*said, *is_so} if said.get(key) != is_so.get(key))
        if differing:
            shown = tuple(differing[:3]) if what == "claims" else ()
            yield Violation(f"gate and PostgreSQL differ in {len(differing)} {what}", shown)
    if seen.pending:
        yield Violation(f"{len(seen.pending)} claims are pending for ever", tuple(map(str, seen.pending))[:3])
    if seen.parked:
        yield Violation(f"{len(seen.parked)} places are parked for nobody")
    for ordinal, counts in seen.counts.items():
        if counts.free != len(seen.state.free[ordinal]) or counts.pending:
            yield Violation(f"pool {ordinal} counts {counts.free} free and {counts.pending} pending")


def no_place_leaks(evidence: Evidence) -> Found:
    """9.5: where more wanted a place than there are, every place has somebody."""
    for pool in evidence.pools:
        free = evidence.truth.state.free[pool.ordinal]
        if pool.fills and free:
            yield Violation(f"places {sorted(free)[:5]} of pool {pool.id} are left, though there were takers")


def sold_out_means_sold_out(evidence: Evidence) -> Found:
    """9.6: no final "no" while a place is free that nobody has had yet, or that was given back long ago."""
    for claim_id, story in evidence.stories.items():
        needed = len(story.wish.people) if story.wish.together else 1
        for operation in story.told:
            if not operation.is_final_no:
                continue
            ended_s = operation.ended_s + _SLACK_SECONDS
            for pool_id in story.wish.choices:
                untouched = _free_through(evidence, pool_id, Span(-inf, ended_s))
                lately = Span(operation.started_s - _NEWS_SECONDS_MAX, ended_s)
                # A place that is given back while somebody waits is on its way to them.
                on_its_way = any(lately.meets(waited) for waited in evidence.waited_spans.get(pool_id, ()))
                free = 0 if on_its_way else _free_through(evidence, pool_id, lately)
                if untouched >= needed or free >= needed:
                    what = f"{untouched} places never taken and {free} free for {_NEWS_SECONDS_MAX:.0f} s"
                    yield Violation(
                        f"sold out at {operation.ended_s:.2f} s, with {what} in pool {pool_id}", (claim_id,)
                    )


def _free_through(evidence: Evidence, pool_id: str, span: Span) -> int:
    """Count the places of a pool that nobody had for all of a span."""
    held = evidence.held_spans.get(pool_id, {})
    return sum(not any(span.meets(other) for other in held.get(n, ())) for n in evidence.pool[pool_id].places)


def waiting_order_is_kept(evidence: Evidence) -> Found:
    """9.7: places go to those who wait in their order, and to no newcomer before them."""
    queues: dict[str, list[BookingRow]] = defaultdict(list)
    newcomers: dict[str, list[Change]] = defaultdict(list)
    for booking in evidence.truth.bookings:
        if booking.wait_seq is not None:
            queues[booking.pool].append(booking)
        elif came := _got_a_place(evidence, booking):
            newcomers[booking.pool].append(came)
    for pool, queue in queues.items():
        in_order = sorted(queue, key=lambda booking: (booking.wait_seq or 0, booking.position))
        yield from _later_waiters_first(evidence, pool, in_order)
        for newcomer in newcomers[pool]:
            yield from _passed_waiters(evidence, pool, in_order, newcomer)


def _later_waiters_first(evidence: Evidence, pool: str, in_order: list[BookingRow]) -> Found:
    for place, later in enumerate(in_order):
        got = _got_a_place(evidence, later)
        for earlier in in_order[:place] if got else ():
            if _waited_through(evidence, earlier, got):
                yield Violation(f"a later waiter of pool {pool} came first", (earlier.claim, later.claim))


def _passed_waiters(evidence: Evidence, pool: str, in_order: list[BookingRow], newcomer: Change) -> Found:
    asked_s = _asked_s(evidence, newcomer.claim)
    for waiter in in_order:
        waits_since_s = evidence.changes_of[waiter.id][0].seen_s
        if waits_since_s + _FLUSH_SECONDS_MAX < asked_s and _waited_through(evidence, waiter, newcomer):
            yield Violation(f"a newcomer passed a waiter of pool {pool}", (waiter.claim, newcomer.claim))


def _got_a_place(evidence: Evidence, booking: BookingRow) -> Change | None:
    return next((change for change in evidence.changes_of[booking.id] if change.status == "confirmed"), None)


def _waited_through(evidence: Evidence, waiter: BookingRow, event: Change | None) -> bool:
    """Tell whether somebody waited before an event and still after it."""
    if event is None:
        return False
    came, *went = evidence.changes_of[waiter.id]
    # Whoever gave the place away may not have seen somebody who was just being written.
    return came.seen_s < event.at_s - _FLUSH_SECONDS_MAX and all(change.number > event.number for change in went)


def _asked_s(evidence: Evidence, claim_id: str) -> float:
    story = evidence.stories.get(claim_id)
    return story.asked_s if story is not None else float("-inf")


def epochs_only_grow(evidence: Evidence) -> Found:
    """9.8: epochs only grow, and no row of an old epoch comes after a rebuild."""
    for before, after in evidence.truth.epochs:
        if after <= before:
            yield Violation(f"epoch {before} was followed by {after}")
    for claim_id, epoch, release_epoch in evidence.truth.epoch_of_claims:
        if epoch != release_epoch and claim_id in evidence.truth.claims:
            yield Violation(f"a row of epoch {epoch} was written in epoch {release_epoch}", (claim_id,))


def recovery_is_bounded(evidence: Evidence) -> Found:
    """9.9: the release is served again soon after a fault, everything is settled, and everybody has an answer."""
    recovery = evidence.recovery
    if recovery.unavailable_after_s is None:
        yield Violation("nobody got a place any more after the fault")
    elif recovery.unavailable_after_s > UNAVAILABLE_SECONDS_MAX:
        yield Violation(f"nobody got a place for {recovery.unavailable_after_s:.1f} s after the fault")
    if recovery.settled_s is None:
        yield Violation("claims were still pending when there was nothing more to wait for")
    if evidence.unanswered:
        yield Violation(f"{len(evidence.unanswered)} claims had no answer", tuple(evidence.unanswered[:3]))


def together_is_all_or_nothing(evidence: Evidence) -> Found:
    """9.10: a claim made together is booked whole, in one pool, or not at all."""
    for claim_id, story in evidence.stories.items():
        if not story.wish.together or len(story.wish.people) == 1:
            continue
        rows = evidence.bookings_of.get(claim_id, ())
        if rows and not _is_whole(story, [(row.person, row.pool, row.status) for row in rows]):
            yield Violation(f"{len(rows)} of {len(story.wish.people)} are booked", (claim_id,))
        for operation in story.told:
            heard = [(seat.person, seat.pool, seat.status) for seat in operation.seats]
            if heard and operation.status < _REFUSED and not _is_whole(story, heard):
                yield Violation(f"{len(heard)} of {len(story.wish.people)} were promised", (claim_id,))


def _is_whole(story: ClaimStory, bookings: list[tuple[str, str, str]]) -> bool:
    people, pools, states = (set(column) for column in zip(*bookings, strict=True))
    return people == set(story.wish.people) and len(pools) == 1 and len(states) == 1


def no_other_error(evidence: Evidence) -> Found:
    """Whatever breaks, a phone hears 503 and when to come again, and never another error of the server's."""
    for operation in evidence.history.operations:
        if operation.status >= _SERVER_ERROR and operation.status not in _BUSY:
            yield Violation(f"{operation.kind} was answered with {operation.status}", (operation.claim,))
    if evidence.hasty:
        yield Violation(f"{len(evidence.hasty)} were sent away without Retry-After", tuple(evidence.hasty[:3]))


def overload_is_bounded(evidence: Evidence) -> Found:
    """In a storm: memory has a bound, health checks and winners' retries pass, and soon after it all is as before."""
    strain = evidence.strain
    if strain is None:
        return
    unexpected = set(strain.answers) - _EXPECTED_IN_A_STORM
    if unexpected:
        yield Violation(f"the storm was answered with {sorted(unexpected)}")
    if strain.without_retry_after:
        yield Violation(f"{strain.without_retry_after} of the storm were sent away without Retry-After")
    for kind, mib in strain.memory_mib.items():
        grown_mib = mib - strain.memory_before_mib.get(kind, 0.0)
        if grown_mib > GROWTH_MIB_MAX:
            yield Violation(f"{kind}: grew by {grown_mib:.0f} MiB, to {mib:.0f}")
    if strain.failed_checks:
        yield Violation(f"{strain.failed_checks} of {strain.checks} health checks failed")
    if strain.failed_retries:
        yield Violation(f"{strain.failed_retries} of {strain.retries} winners asked again in vain")
    if strain.back_s > BACK_SECONDS_MAX:
        yield Violation(f"health checks were slow for {strain.back_s:.1f} s after the storm")
    away_s = evidence.recovery.unavailable_after_s
    if away_s is None or away_s > BACK_SECONDS_MAX:
        yield Violation("nobody got a place for too long after the storm")


CHECKS: Final[Mapping[str, Callable[[Evidence], Found]]] = {
    check.__name__: check
    for check in (
        one_holder_each_place,
        limits_hold,
        every_yes_is_kept,
        nothing_else_is_booked,
        a_final_no_is_final,
        one_answer_each_claim,
        gate_and_postgresql_agree,
        no_place_leaks,
        sold_out_means_sold_out,
        waiting_order_is_kept,
        epochs_only_grow,
        recovery_is_bounded,
        together_is_all_or_nothing,
        no_other_error,
        overload_is_bounded,
    )
}


def judge(evidence: Evidence) -> Mapping[str, list[Violation]]:
    """Return what broke, by invariant; nothing where everything held."""
    found = {name: list(check(evidence)) for name, check in CHECKS.items()}
    return {name: violations for name, violations in found.items() if violations}


def story_of(evidence: Evidence, claim_id: str) -> list[str]:
    """Return everything that is known of a claim, a line each, in order."""
    lines: list[tuple[float, str]] = []
    story = evidence.stories.get(claim_id)
    for operation in story.told if story else ():
        lines.append((operation.started_s, f"{operation.kind} asked"))
        lines.append((operation.ended_s, f"{operation.kind} heard {_heard(operation)}"))
    for change in evidence.truth.changes:
        if change.claim == claim_id:
            what = f"PostgreSQL: person {change.person[:8]} {change.status} {change.place_no} in pool {change.pool[:8]}"
            lines.append((change.at_s, what))
    row = evidence.truth.claims.get(claim_id)
    if row is not None:
        lines.append((row.decided_at_s, f"the gate decided it in epoch {row.epoch}; PostgreSQL has it as {row.state}"))
    return [f"{at_s:8.3f} s  {what}" for at_s, what in sorted(lines)]


def _heard(operation: Operation) -> str:
    seats = ", ".join(f"{seat.person[:8]} {seat.status} {seat.place_no}" for seat in operation.seats)
    return f"{operation.status} {operation.outcome}{' final' if operation.final else ''} {seats}".strip()
