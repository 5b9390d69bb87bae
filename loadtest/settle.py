"""Asks once more when all is quiet: is every promise still there, and is nothing there that nobody was promised.

Four questions, all recorded as `after_rush`: each claim with a yes, a place in the queue or an unknown end by its id;
each such parent's own list; the same PUT again for claims that were answered yes; and the lists of some who were
refused.
"""

import time
from dataclasses import dataclass, field
from typing import Final

from loadtest import wire
from loadtest.history import History, Kind, Operation
from loadtest.http1 import Answer
from loadtest.phone import Rush, claim_message, read_answer, seats_of
from loadtest.prepare import PREPARING_PHONES, CannotRunError, Parent, Preparation, for_each, without_groups

_ECHOES_MAX: Final = 500
_REFUSED_ASKED_MAX: Final = 200
_PAGES_MAX: Final = 20
_GIVEN_BACK: Final = frozenset({200, 204})
_SERVER_ERROR: Final = 500


@dataclass(slots=True)
class _Sorted:
    promised: set[str] = field(default_factory=set[str])
    doubtful: set[str] = field(default_factory=set[str])
    given_back: set[str] = field(default_factory=set[str])


def _sort(history: History) -> _Sorted:
    """Sort the claims by what was heard of them."""
    claims = _Sorted()
    for operation in history.operations:
        if operation.is_yes:
            claims.promised.add(operation.claim)
        elif operation.kind is Kind.CANCEL and operation.status in _GIVEN_BACK:
            claims.given_back.add(operation.claim)
        elif operation.claim and (operation.status in {0, 202} or operation.status >= _SERVER_ERROR):
            claims.doubtful.add(operation.claim)
    return claims


class _Questions:
    """The questions, asked by the phones that prepared the crowd."""

    def __init__(self, rush: Rush, parents: list[Parent], preparation: Preparation) -> None:
        self.rush = rush
        self.history = rush.history
        self.parents = {parent.plan.number: parent for parent in parents}
        self.preparation = preparation

    def record(self, kind: Kind, claim_id: str, parent: int, started_s: float, answer: Answer | None) -> None:
        """Write one answer down; none is status 0."""
        if answer is None:
            operation = Operation(
                kind, parent, claim_id, started_s, started_s, self.rush.now(), 0, "no_answer", after_rush=True
            )
        else:
            heard = read_answer(answer)
            decided_at = heard.body.decided_at
            operation = Operation(
                kind=kind,
                parent=parent,
                claim=claim_id,
                due_s=started_s,
                started_s=started_s,
                ended_s=self.rush.now(),
                status=answer.status,
                outcome=heard.outcome,
                final=heard.body.final is True or heard.body.code == "sold_out",
                seq=heard.body.seq,
                decided_at_s=decided_at and decided_at.timestamp() - self.rush.opens_at_epoch_seconds,
                seats=seats_of(heard.body),
                after_rush=True,
            )
        self.history.operations.append(operation)

    async def ask_for_claim(self, claim_id: str) -> None:
        """Ask for one claim by its id."""
        parent = self.parents[self.history.senders[claim_id]]
        started_s = self.rush.now()
        answer: Answer | None
        try:
            answer = await self.preparation.ask("GET", f"/v1/claims/{claim_id}", token=parent.access_token)
        except CannotRunError:
            answer = None
        self.record(Kind.CLAIM_STATUS, claim_id, parent.plan.number, started_s, answer)

    async def send_again(self, claim_id: str) -> None:
        """Send the same PUT again; the same id must get the same answer."""
        parent = self.parents[self.history.senders[claim_id]]
        started_s = self.rush.now()
        headers = {"Authorization": f"Pass {parent.pass_token}"}
        answer: Answer | None
        try:
            answer = await self.preparation.send(claim_message(self.rush, self.history.wishes[claim_id], headers))
        except CannotRunError:
            answer = None
        self.record(Kind.CLAIM, claim_id, parent.plan.number, started_s, answer)

    async def ask_for_list(self, number: int) -> None:
        """Read an account's own list of claims, page by page."""
        states: dict[str, str] = {}
        cursor = ""
        for _ in range(_PAGES_MAX):
            started_s = self.rush.now()
            path = "/v1/me/claims?limit=100" + (f"&cursor={cursor}" if cursor else "")
            try:
                answer = await self.preparation.ask("GET", path, token=self.parents[number].access_token)
                page = wire.read(answer, wire.ClaimPage)
            except (CannotRunError, wire.UnreadableError):
                self.record(Kind.MY_CLAIMS, "", number, started_s, None)
                return
            states |= {item.claim: item.state for item in page.items}
            if page.next is None:
                break
            cursor = page.next
        self.history.listed[number] = states


async def settle(rush: Rush, parents: list[Parent], preparation: Preparation) -> None:
    """Ask, and write the answers into the history. A question that stays unanswered is on record with status 0."""
    began_at = time.perf_counter()
    history = rush.history
    claims = _sort(history)
    questions = _Questions(rush, parents, preparation)
    asked = sorted(claims.promised | claims.doubtful)
    owners = {history.senders[claim_id] for claim_id in asked}
    others = [number for number in questions.parents if number not in owners][:_REFUSED_ASKED_MAX]
    echoed = sorted(claims.promised - claims.given_back)[:_ECHOES_MAX]
    await without_groups(for_each(echoed, PREPARING_PHONES, questions.send_again))
    await without_groups(for_each(asked, PREPARING_PHONES, questions.ask_for_claim))
    await without_groups(for_each((*sorted(owners), *others), PREPARING_PHONES, questions.ask_for_list))
    history.settling_seconds = time.perf_counter() - began_at
