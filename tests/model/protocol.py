"""Every step that the protocol can take from a state: what servers do by themselves, what phones do, what goes wrong.

What a crash interrupts is several steps here; what a lock or a script makes one is one step. Steps that wait (for a
lock, for a row that somebody else is writing) are not possible yet.
"""

from collections.abc import Iterator

from tests.model import scripts, transactions
from tests.model.scripts import Answer
from tests.model.state import CLAIMS, SECOND_TRY, Gate, Guards, News, Row, State, Status, Write, replaced
from tests.model.transactions import Verdict

Step = tuple[str, State]
Steps = Iterator[Step]

_NAMES = ("Ann", "Ben", "Ann again")
_LIVE = (Status.HELD, Status.WAITS)
_FINAL_NO = (Status.VOID, Status.SOLD_OUT)
_NOES = (Answer.BOOKED, Answer.FULL, Answer.SOLD_OUT)


def gate_in_force(state: State, guards: Guards) -> Gate | None:
    """Return the state in Redis, if a worker that connects now would believe it."""
    gate = state.gate
    if gate is None or (guards.gate_identity and gate.server != state.server):
        return None
    return gate


def server_steps(state: State, guards: Guards) -> Steps:
    """Yield what the servers do by themselves. Where nothing is left to do, the system is at rest."""
    yield from _write_steps(state, guards)
    yield from _owed_steps(state)
    yield from _copy_steps(state, guards)
    gate = gate_in_force(state, guards)
    if gate is not None:
        yield from _pending_steps(state, gate, guards)
        yield from _parked_steps(state, gate)
        if state.truth.epoch != gate.epoch > state.condemned and guards.sweep_compares_epoch:
            yield "the sweep sees that the epoch is over", _condemn(state, gate.epoch)
    if state.old is not None:
        yield "the last line to the old primary ends", state._replace(old=None)
    yield from _news_steps(state, gate, guards)
    if not state.loads and (gate is None or gate.epoch <= state.condemned):
        yield from rebuild_steps(state, guards, "rebuild")
    yield from _activation_steps(state, guards)


def phone_steps(state: State, guards: Guards) -> Steps:
    """Yield what the phones do: ask, ask again, give back."""
    gate = gate_in_force(state, guards)
    for claim in CLAIMS:
        heard = state.heard[claim]
        if (
            heard in _FINAL_NO
            or heard == Status.GIVEN_BACK
            or any(w.claim == claim and w.awaited for w in state.writes)
        ):
            continue
        if claim == SECOND_TRY and state.heard[0] not in {Status.VOID, Status.GIVEN_BACK}:
            continue
        # A worker that knows an epoch to be over asks Redis nothing more in it.
        if gate is not None and gate.epoch > state.condemned:
            yield from _ask(state, gate, claim, guards)
        if state.old is not None and state.old.epoch > state.condemned:
            # Who is there is who was there when the line was made; nothing has told this worker otherwise.
            yield from _ask(state, state.old, claim, guards, at_the_old=True)
        row = state.truth.rows[claim]
        someone_is_writing = any(w.is_open and w.status == Status.HELD for w in state.writes)
        if heard in _LIVE and row.status in _LIVE and state.left.returns and not someone_is_writing:
            yield (
                f"{_NAMES[claim]} gives back",
                state._replace(
                    truth=transactions.given_back(state.truth, claim),
                    heard=replaced(state.heard, claim, Status.GIVEN_BACK),
                    left=state.left._replace(returns=state.left.returns - 1),
                ),
            )


def fault_steps(state: State, guards: Guards) -> Steps:
    """Yield what goes wrong, as long as it still may."""
    left = state.left
    if left.hang_ups:
        yield from _hang_ups(state._replace(left=left._replace(hang_ups=left.hang_ups - 1)), guards)
    if left.crashes:
        yield from _crash_steps(state._replace(left=left._replace(crashes=left.crashes - 1)), guards)
    if left.doubts:
        in_doubt = state._replace(left=left._replace(doubts=left.doubts - 1))
        for write in state.writes:
            if write.awaited:
                stray = write._replace(awaited=False)
                again = write._replace(is_open=False)
                yield (
                    f"PostgreSQL's reply to {_NAMES[write.claim]}'s commit is lost; the worker sends it again",
                    _with_writes(in_doubt, _without(state, write), stray, again),
                )
    if left.losses:
        lost = state._replace(loads=(), replica=None, left=left._replace(losses=left.losses - 1))
        if state.gate is not None:
            yield "Redis is emptied", lost._replace(gate=None)
        if state.replica is None:
            yield "the replica falls behind", state._replace(replica=state.gate)
        else:
            promoted = lost._replace(gate=state.replica, server=state.server + 1)
            yield "the replica with old data is promoted", promoted
            yield "the replica with old data is promoted; the old primary lives on", promoted._replace(old=state.gate)
    if left.rebuilds and not state.loads:
        by_hand = state._replace(left=left._replace(rebuilds=left.rebuilds - 1))
        yield from rebuild_steps(by_hand, guards, "rebuild by hand")


def _hang_ups(state: State, guards: Guards) -> Steps:
    for claim in CLAIMS:
        if state.heard[claim] not in _FINAL_NO and claim not in state.copies:
            copies = state.copies if guards.unjudged_end_with_their_phone else (*state.copies, claim)
            yield f"{_NAMES[claim]} asks, waits to be judged, and hangs up", state._replace(copies=copies)


def without_spent(state: State, guards: Guards) -> State:
    """Forget late commits that can write nothing any more: one state instead of many that differ in nothing."""
    if not guards.epoch_fence:
        return state
    truth = state.truth
    writes = tuple(
        write
        for write in state.writes
        if write.awaited or write.is_open or (write.epoch == truth.epoch and not truth.rows[write.claim].status)
    )
    return state if len(writes) == len(state.writes) else state._replace(writes=writes)


def rebuild_steps(state: State, guards: Guards, why: str) -> Steps:
    """Yield the first half of a rebuild: what it commits in PostgreSQL, and loads under keys that nobody reads."""
    if guards.rebuild_waits_for_commits and any(write.is_open for write in state.writes):
        return
    truth, load = transactions.rebuilt(state.truth, state.server)
    yield f"{why}: epoch {truth.epoch} is committed", state._replace(truth=truth, loads=(*state.loads, load))


def _write_steps(state: State, guards: Guards) -> Steps:
    for write in state.writes:
        name = _NAMES[write.claim]
        rest = state._replace(writes=_without(state, write))
        if not write.awaited:
            yield f"{name}'s late commit is gone with its connection", rest
        if write.is_open:
            yield from _commit(rest, write)
        elif not transactions.waits_for(write, state.writes):
            verdict = transactions.examine(state.truth, write, guards)
            if verdict is Verdict.OPEN:
                yield f"{name}'s commit takes its locks", _with_writes(rest, rest.writes, write._replace(is_open=True))
            elif write.awaited:
                yield from _verdict(rest, write, verdict)
            else:
                yield f"{name}'s late commit finds {verdict.name}", rest


def _commit(rest: State, write: Write) -> Steps:
    name = _NAMES[write.claim]
    broken = ""
    if write.epoch != rest.truth.epoch:
        broken = "no row of an old epoch is written after a rebuild"
    elif transactions.passes_a_waiter(rest.truth, write):
        broken = "no newcomer passes a waiter"
    after = rest._replace(truth=transactions.committed(rest.truth, write), broken=broken)
    if write.awaited:
        yield (
            f"{name}'s commit is done, and the phone hears {write.status.name}",
            _hear(after, write.claim, write.status),
        )
    yield f"{name}'s commit is done, and the phone hears nothing of it", after


def _verdict(rest: State, write: Write, verdict: Verdict) -> Steps:
    name = _NAMES[write.claim]
    match verdict:
        case Verdict.KNOWN:
            yield f"{name}'s commit was in already: {write.status.name}", _hear(rest, write.claim, write.status)
            yield f"{name}'s commit was in already, and the phone hears nothing of it", rest
        case Verdict.VOID:
            yield f"{name} hears that the claim is void", _hear(rest, write.claim, Status.VOID)
        case Verdict.STALE | Verdict.CONTRADICTION:
            yield f"{name}'s commit finds {verdict.name}", _condemn(rest, write.epoch)
        case Verdict.OPEN:
            raise AssertionError(verdict)


def _pending_steps(state: State, gate: Gate, guards: Guards) -> Steps:
    """Confirm, sweep, release."""
    for claim in CLAIMS:
        if not gate.records[claim].pending:
            continue
        name, row = _NAMES[claim], state.truth.rows[claim]
        released = state._replace(gate=scripts.release(gate, claim, guards))
        if row.status > Status.VOID:
            yield f"Redis hears that {name} is in PostgreSQL", state._replace(gate=scripts.confirm(gate, claim))
        elif row.status == Status.VOID:
            yield f"Redis releases {name}'s claim", released
        elif not guards.doubt_settled_by_insert:
            yield f"the sweep looks for {name}'s row, finds none, and releases the claim", released
        if not guards.tombstone:
            yield f"{name}'s deadline is over, and Redis releases the claim", released
        elif not guards.tombstone_before_release:
            yield (
                f"the sweep releases {name}'s claim before its tombstone",
                released._replace(owed=(*state.owed, claim)),
            )
        elif row.status == Status.UNKNOWN and guards.doubt_settled_by_insert:
            yield from _tombstone(state, gate, claim)


def _tombstone(state: State, gate: Gate, claim: int) -> Steps:
    if gate.epoch != state.truth.epoch:
        yield "the sweep finds the epoch over", _condemn(state, gate.epoch)
    elif not any(write.is_open and write.claim == claim for write in state.writes):
        truth = transactions.with_row(state.truth, claim, Row(Status.VOID))
        yield f"the sweep writes {_NAMES[claim]}'s tombstone", state._replace(truth=truth)


def _owed_steps(state: State) -> Steps:
    for claim in state.owed:
        if any(write.is_open and write.claim == claim for write in state.writes):
            continue
        paid = state._replace(owed=tuple(c for c in state.owed if c != claim))
        if state.truth.rows[claim].status == Status.UNKNOWN:
            paid = paid._replace(truth=transactions.with_row(state.truth, claim, Row(Status.VOID)))
        yield f"{_NAMES[claim]}'s tombstone comes after the release", paid


def _copy_steps(state: State, guards: Guards) -> Steps:
    gate = gate_in_force(state, guards)
    for claim in state.copies:
        rest = state._replace(copies=tuple(other for other in state.copies if other != claim))
        if gate is None or gate.epoch <= state.condemned:
            yield f"nobody judges the copy of {_NAMES[claim]}'s claim that was left behind", rest
            continue
        answer, after = scripts.judge(gate, claim, guards)
        if answer is Answer.ADMITTED:
            record = after.records[claim]
            write = Write(claim, gate.epoch, record.status, record.seq, awaited=False)
            rest = _with_writes(rest._replace(gate=after), rest.writes, write)
        yield f"the copy of {_NAMES[claim]}'s claim that was left behind is judged: {answer.name}", rest


def _parked_steps(state: State, gate: Gate) -> Steps:
    if not gate.parked:
        return
    if gate.epoch != state.truth.epoch:
        yield "the sweep finds the epoch over", _condemn(state, gate.epoch)
    elif not any(write.is_open and write.status == Status.HELD for write in state.writes):
        truth = transactions.handed_over(state.truth)
        if truth != state.truth:
            yield "the parked place goes to the first who waits", state._replace(truth=truth)
    unparked = scripts.free_unwanted(gate)
    if unparked != gate:
        yield "nobody waits for the parked place: it is free", state._replace(gate=unparked)


def _news_steps(state: State, gate: Gate | None, guards: Guards) -> Steps:
    news = state.news
    if news is None:
        if gate is not None and (gate.epoch == state.truth.epoch or not guards.news_only_of_its_epoch):
            for claim, row in enumerate(state.truth.rows):
                if row.told < row.revision:
                    told = News(claim, row.status, row.revision, gate.epoch)
                    yield (
                        f"PostgreSQL says that {_NAMES[claim]}'s claim is {row.status.name}",
                        state._replace(news=told),
                    )
        return
    heard = state._replace(news=None)
    if gate is None or gate.epoch != news.epoch:
        yield "the news is for an epoch that is not in force", heard
        return
    settled = scripts.settle(gate, news, guards)
    if settled is None:
        yield "the news is of a claim that Redis does not know", _condemn(heard, gate.epoch)
        return
    row = state.truth.rows[news.claim]
    row = row._replace(told=max(row.told, news.revision))
    yield (
        f"Redis hears that {_NAMES[news.claim]}'s claim is {news.status.name}, and PostgreSQL that it did",
        heard._replace(gate=settled, truth=transactions.with_row(state.truth, news.claim, row)),
    )


def _activation_steps(state: State, guards: Guards) -> Steps:
    for load in state.loads:
        rest = state._replace(loads=tuple(other for other in state.loads if other != load))
        if guards.activation_goes_forward and state.gate is not None and state.gate.epoch >= load.epoch:
            yield f"epoch {load.epoch} comes too late", rest
        else:
            yield f"epoch {load.epoch} is in force", rest._replace(gate=load)


def _ask(state: State, gate: Gate, claim: int, guards: Guards, *, at_the_old: bool = False) -> Steps:
    name = f"{_NAMES[claim]}, at the old primary," if at_the_old else _NAMES[claim]
    answer, after = scripts.judge(gate, claim, guards)
    record = after.records[claim]
    if at_the_old and (answer in _NOES or (answer is Answer.KNOWN and record.status == Status.WAITS)):
        # The one thing that may be wrong, until the next look: a "no", or a "you wait", from a state that is over. By
        # what is only said nobody is booked or loses a place.
        return
    match answer:
        case Answer.KNOWN:
            yield f"{name} asks and is known: {record.status.name}", _hear(state, claim, record.status)
        case Answer.ADMITTED | Answer.PENDING:
            admitted = state._replace(old=after) if at_the_old else state._replace(gate=after)
            write = Write(claim, gate.epoch, record.status, record.seq)
            yield (
                f"{name} asks; Redis: {answer.name}, {record.status.name}; the commit is sent",
                _with_writes(admitted, state.writes, write),
            )
            if answer is Answer.ADMITTED and state.left.crashes:
                left = state.left._replace(crashes=state.left.crashes - 1)
                yield f"{name} asks; Redis: ADMITTED; the worker dies", admitted._replace(left=left)
        case Answer.BOOKED | Answer.FULL:
            yield f"{name} asks and hears {answer.name}", _hear(state, claim, Status.UNKNOWN)
        case Answer.SOLD_OUT:
            sold = any(row.status in {Status.HELD, Status.GIVEN_BACK} for row in state.truth.rows)
            heard = _hear(state, claim, Status.SOLD_OUT)
            if not sold:
                heard = heard._replace(broken="no final no before the place is sold")
            yield f"{name} asks and hears SOLD_OUT", heard


def _hear(state: State, claim: int, answer: Status) -> State:
    """Let a phone hear an answer; UNKNOWN is a no that is not final."""
    before = state.heard[claim]
    if before in _LIVE and (answer not in {*_LIVE, Status.GIVEN_BACK} or (before, answer) == _LIVE):
        return state._replace(broken="a claim id gets one answer")
    return state._replace(heard=replaced(state.heard, claim, answer)) if answer else state


def _crash_steps(state: State, guards: Guards) -> Steps:
    for write in state.writes:
        if write.awaited:
            stray = write._replace(awaited=False)
            yield f"{_NAMES[write.claim]}'s worker dies", _with_writes(state, _without(state, write), stray)
    for load in state.loads:
        rest = state._replace(loads=tuple(other for other in state.loads if other != load))
        yield f"the rebuild of epoch {load.epoch} dies", rest._replace(condemned=0)
        yield from rebuild_steps(state, guards, "one rebuild hangs; another")
    if state.news is not None:
        yield "the news dies with its worker", state._replace(news=None)
    if state.condemned:
        yield "the worker that knew the epoch to be over dies", state._replace(condemned=0)


def _condemn(state: State, epoch: int) -> State:
    return state._replace(condemned=max(state.condemned, epoch))


def _without(state: State, write: Write) -> tuple[Write, ...]:
    at = state.writes.index(write)
    return (*state.writes[:at], *state.writes[at + 1 :])


def _with_writes(state: State, writes: tuple[Write, ...], *more: Write) -> State:
    return state._replace(writes=tuple(sorted((*writes, *more))))
