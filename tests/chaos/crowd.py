"""The phones of a round: they claim, retry, wait, give back and hang up, and write down what they asked and heard.

Written in the form of the rehearsals' histories (`loadtest/history.py`): a request whose answer did not come is
unknown, never failed.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of
from app.core.auth import sign_access_token
from loadtest import wire
from loadtest.behaviour import Wish
from loadtest.history import History, Kind, Operation
from loadtest.http1 import Network, NoAnswerError, NoConnectionError, Phone
from loadtest.phone import claim_body, read_answer, seats_of
from tests.booking.gate.builders import FAR_FUTURE_MS, MadeRelease

PARENTS: Final = 260
# The last pool of the release is the probes'.
PROBE_EVERY_SECONDS: Final = 0.1
# A phone that hears nothing for so long dials again.
_PATIENCE_SECONDS: Final = 1.5
_TOKEN_SECONDS: Final = 86_400
_WAIT_SECONDS_MAX: Final = 0.5
# What a parent does whose first tap was answered with "full".
_ASKS_AGAIN_MAX: Final = 3
# Some come before the burst, half of all within it, and the others until so long after it.
_EARLY_SHARE: Final = 0.2
_LATE_SHARE: Final = 0.3
_BURST_SECONDS: Final = 0.3
_LATE_SECONDS: Final = 4.0
_WANTS_BOTH_SHARE: Final = 0.3
# Of those who hear nothing: who does not ask again while the crowd is there, unless told otherwise.
GIVES_UP_SHARE: Final = 0.3
_RETRY_TRIES: Final = 3
_REFUSED: Final = 400
_BUSY: Final = frozenset({429, 503})
_GIVEN_BACK: Final = frozenset({200, 204})


@dataclass(frozen=True, slots=True)
class Keys:
    """What signs the phones' passes and tokens: the server's own keys."""

    passes: PassSigner
    tokens: bytes


@dataclass(frozen=True, slots=True)
class Parent:
    """An account with its people, its pass and its token."""

    number: int
    people: tuple[str, ...]
    pass_headers: dict[str, str]
    token_headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Retry:
    """A winner's claim that was sent again: when, and whether it got the same "yes" within some tries."""

    started_s: float
    is_yes: bool


@dataclass(slots=True)
class Probes:
    """What the probes found: when somebody got a place, in seconds of the round, and winners' retries."""

    yes_at_s: list[float] = field(default_factory=list[float])
    # Until when they could have got one: they were asked for, and there were some.
    until_s: float = 0.0
    retries: list[Retry] = field(default_factory=list[Retry])


class Crowd:
    """Everybody who wants something of one release."""

    def __init__(
        self,
        network: Network,
        made: MadeRelease,
        keys: Keys,
        rng: random.Random,
        *,
        gives_up_share: float = GIVES_UP_SHARE,
    ) -> None:
        self._gives_up_share = gives_up_share
        self._network = network
        self._made = made
        self._keys = keys
        self._rng = rng
        self.history = History()
        self.probes = Probes()
        # Nobody begins anything new any more; what is under way is asked for until it is decided.
        self.is_over = asyncio.Event()
        # Claims that were sent away without a word about when to come again.
        self.hasty: list[str] = []
        self._began_at = time.perf_counter()
        self.began_at_epoch_seconds = time.time()
        self._parents = 0
        self._doubtful: dict[str, Parent] = {}
        self._is_sold_out = False

    def now(self) -> float:
        """Return the seconds since the round began."""
        return time.perf_counter() - self._began_at

    async def rush(self, burst_s: float) -> None:
        """Live every parent's evening. Most come at once, at that moment of the round."""
        async with asyncio.TaskGroup() as group:
            for _ in range(PARENTS):
                rng = random.Random(self._rng.getrandbits(64))
                parent = self._new_parent(rng.choice((1, 1, 1, 2, 2, 3)))
                group.create_task(self._evening(parent, rng, _comes_at_s(rng, burst_s)))

    async def probe(self) -> None:
        """Claim a place of the last pool every so often until the crowd is over: is this release served?"""
        async with asyncio.TaskGroup() as group:
            while not self.is_over.is_set():
                if not self._is_sold_out:
                    self.probes.until_s = self.now()
                group.create_task(self._probe_once())
                await asyncio.sleep(PROBE_EVERY_SECONDS)

    async def settle(self, limit_seconds: float) -> None:
        """Ask for every claim whose end is not known until it is. What stays unknown is the checker's to judge."""
        deadline = self.now() + limit_seconds
        waiting = dict(self._doubtful)
        async with asyncio.TaskGroup() as group:
            for claim_id, parent in waiting.items():
                group.create_task(self._until_known(claim_id, parent, deadline))

    async def take_the_rest(self, limit_seconds: float) -> None:
        """Claim places of each of the crowd's pools until it is sold out for good: none may be left over."""
        deadline = self.now() + limit_seconds
        async with asyncio.TaskGroup() as group:
            for ordinal in range(len(self._made.pools) - 1):
                group.create_task(self._empty(ordinal, deadline))

    # One parent's evening.

    async def _evening(self, parent: Parent, rng: random.Random, comes_at_s: float) -> None:
        await self._pause(comes_at_s - self.now())
        phone = Phone(self._network, limit_seconds=_PATIENCE_SECONDS)
        pools = list(self._made.pools[:-1])
        # Some would like things that exclude each other, one after the other.
        rng.shuffle(pools)
        if rng.random() < _WANTS_BOTH_SHARE:
            pools[:2] = self._made.pools[-3:-1]
        try:
            for number in range(rng.choice((1, 1, 2, 3))):
                choices = pools[number : number + rng.randint(1, 3)]
                if self.is_over.is_set() or not await self._pursue(
                    parent, phone, self._wish(parent, choices, rng), rng
                ):
                    return
        finally:
            phone.hang_up()

    def _wish(self, parent: Parent, choices: Sequence[UUID], rng: random.Random) -> Wish:
        return Wish(
            claim_id=str(UUID(int=rng.getrandbits(128), version=4)),
            people=parent.people,
            choices=tuple(map(str, choices)),
            together=rng.random() < 0.7,
            waitlist=rng.random() < 0.4,
        )

    async def _pursue(self, parent: Parent, phone: Phone, wish: Wish, rng: random.Random) -> bool:
        """Take one claim as far as it goes. Tells whether the parent would like something else as well."""
        self._note(wish, parent)
        refused = 0
        while True:
            hangs_up_after = rng.uniform(0.0, 0.05) if rng.random() < 0.05 else None
            said = await self._put(parent, phone, wish, hangs_up_after)
            if said.is_yes:
                return await self._enjoy(parent, phone, wish, rng)
            if said.outcome == "waitlisted":
                await self._wait_in_line(parent, phone, wish, rng)
                return False
            if said.is_final_no or (said.status >= _REFUSED and said.status not in _BUSY and said.outcome != "full"):
                return rng.random() < 0.5
            if said.outcome == "full":
                refused += 1
                if refused > _ASKS_AGAIN_MAX or self.is_over.is_set():
                    return True
            elif self.is_over.is_set() or (said.status == 0 and rng.random() < self._gives_up_share):
                # Nobody asks any more; the claim may have got a place all the same.
                self._doubtful[wish.claim_id] = parent
                return False
            await self._pause(rng.uniform(0.1, _WAIT_SECONDS_MAX))

    async def _enjoy(self, parent: Parent, phone: Phone, wish: Wish, rng: random.Random) -> bool:
        if rng.random() < 0.25:
            await self._pause(rng.uniform(0.0, 1.5))
            await self._put(parent, phone, wish)
        if rng.random() < 0.2:
            await self._pause(rng.uniform(0.1, 2.0))
            await self._give_back(parent, phone, wish, rng)
            return False
        return rng.random() < 0.5

    async def _give_back(self, parent: Parent, phone: Phone, wish: Wish, rng: random.Random) -> None:
        message = self._network.compose("DELETE", f"/v1/claims/{wish.claim_id}", parent.token_headers)
        while True:
            said = await self._ask(Kind.CANCEL, parent, phone, wish.claim_id, message)
            known = said.status in _GIVEN_BACK or (said.status >= _REFUSED and said.status not in _BUSY)
            # Some never look whether it went through.
            if known or self.is_over.is_set() or (said.status == 0 and rng.random() < self._gives_up_share):
                return
            await self._pause(rng.uniform(0.1, _WAIT_SECONDS_MAX))

    async def _wait_in_line(self, parent: Parent, phone: Phone, wish: Wish, rng: random.Random) -> None:
        while not self.is_over.is_set():
            await self._pause(rng.uniform(0.5, 1.5))
            if rng.random() < 0.05:
                await self._give_back(parent, phone, wish, rng)
                return
            said = await self._look(parent, phone, wish.claim_id)
            if said.is_yes:
                return

    # Requests.

    async def _put(self, parent: Parent, phone: Phone, wish: Wish, hangs_up_after: float | None = None) -> Operation:
        body = claim_body(str(self._made.release_id), wish)
        message = self._network.compose("PUT", f"/v1/claims/{wish.claim_id}", parent.pass_headers, body)
        return await self._ask(Kind.CLAIM, parent, phone, wish.claim_id, message, hangs_up_after)

    async def _look(self, parent: Parent, phone: Phone, claim_id: str) -> Operation:
        message = self._network.compose("GET", f"/v1/claims/{claim_id}", parent.pass_headers)
        return await self._ask(Kind.CLAIM_STATUS, parent, phone, claim_id, message)

    async def _ask(
        self,
        kind: Kind,
        parent: Parent,
        phone: Phone,
        claim_id: str,
        message: bytes,
        hangs_up_after: float | None = None,
    ) -> Operation:
        started_s = self.now()
        status, outcome, body = 0, "", wire.ClaimBody()
        try:
            answer = await phone.send(message, cut_after_seconds=hangs_up_after)
        except NoAnswerError as error:
            outcome = f"no_answer_{error.reason}"
        except NoConnectionError:
            outcome = "no_connection"
        else:
            heard = read_answer(answer)
            status, outcome, body = answer.status, heard.outcome, heard.body
            if status in _BUSY and b"retry-after" not in answer.headers:
                self.hasty.append(claim_id)
        operation = Operation(
            kind=kind,
            parent=parent.number,
            claim=claim_id,
            due_s=started_s,
            started_s=started_s,
            ended_s=self.now(),
            status=status,
            outcome=outcome,
            final=body.final is True or body.code == "sold_out",
            seq=body.seq,
            decided_at_s=body.decided_at and body.decided_at.timestamp() - self.began_at_epoch_seconds,
            seats=seats_of(body),
        )
        self.history.operations.append(operation)
        return operation

    # The rest.

    def _note(self, wish: Wish, parent: Parent) -> None:
        self.history.wishes[wish.claim_id] = wish
        self.history.senders[wish.claim_id] = parent.number

    async def _pause(self, seconds: float) -> None:
        """Rest, but not beyond the end of the crowd."""
        try:
            async with asyncio.timeout(seconds):
                await self.is_over.wait()
        except TimeoutError:
            return
        # What is still to be asked then is not asked by all at once, and without end.
        await asyncio.sleep(min(seconds, _WAIT_SECONDS_MAX))

    def _new_parent(self, people: int) -> Parent:
        self._parents += 1
        drawn = [UUID(int=self._rng.getrandbits(128), version=4) for _ in range(people + 1)]
        account, persons = drawn[0], drawn[1:]
        pools = mask_of(set(range(len(self._made.pools))))
        signed = self._keys.passes.sign(
            Pass.of(
                self._made.release_id,
                account,
                FAR_FUTURE_MS,
                tuple(PassPerson(person.bytes, pools, 0) for person in persons),
            )
        )
        now_ms = int(datetime.now(UTC).timestamp() * 1_000)
        token = sign_access_token(account, key=self._keys.tokens, now_ms=now_ms, lifetime_seconds=_TOKEN_SECONDS)
        return Parent(
            self._parents,
            tuple(map(str, persons)),
            {"Authorization": f"Pass {signed}"},
            {"Authorization": f"Bearer {token}"},
        )

    def _lone_wish(self, parent: Parent, pool: UUID) -> Wish:
        claim_id = str(UUID(int=self._rng.getrandbits(128), version=4))
        return Wish(claim_id, parent.people, (str(pool),), together=True, waitlist=False)

    async def _probe_once(self) -> None:
        parent = self._new_parent(1)
        wish = self._lone_wish(parent, self._made.pools[-1])
        self._note(wish, parent)
        said = await self._once(lambda phone: self._put(parent, phone, wish))
        if said.is_yes:
            self.probes.yes_at_s.append(said.ended_s)
            await self._ask_again(parent, wish)
        elif said.is_final_no:
            self._is_sold_out = True
        elif said.status in {0, 202} or said.status in _BUSY:
            self._doubtful[wish.claim_id] = parent

    async def _ask_again(self, parent: Parent, wish: Wish) -> None:
        """Send a winner's claim again. A worker that has not met it may send it away once or twice."""
        started_s, is_yes, tries = self.now(), False, 0
        while not is_yes and tries < _RETRY_TRIES:
            await asyncio.sleep(tries * _WAIT_SECONDS_MAX / 2)
            is_yes = (await self._once(lambda phone: self._put(parent, phone, wish))).is_yes
            tries += 1
        self.probes.retries.append(Retry(started_s, is_yes))

    async def _until_known(self, claim_id: str, parent: Parent, deadline: float) -> None:
        wish = self.history.wishes[claim_id]
        while self.now() < deadline:
            said = await self._once(lambda phone: self._put(parent, phone, wish))
            if said.status not in {0, 202} and said.status not in _BUSY:
                return
            if said.outcome == "waitlisted":
                return
            await asyncio.sleep(_WAIT_SECONDS_MAX / 2)

    async def _empty(self, ordinal: int, deadline: float) -> None:
        while self.now() < deadline:
            parent = self._new_parent(1)
            wish = self._lone_wish(parent, self._made.pools[ordinal])
            self._note(wish, parent)
            said = await self._once(lambda phone: self._put(parent, phone, wish))  # noqa: B023 - awaited at once
            if said.is_final_no:
                return
            if not said.is_yes:
                if said.status in {0, 202} or said.status in _BUSY:
                    await self._until_known(wish.claim_id, parent, deadline)
                await asyncio.sleep(_WAIT_SECONDS_MAX / 5)

    async def _once(self, ask: Callable[[Phone], Awaitable[Operation]]) -> Operation:
        phone = Phone(self._network, limit_seconds=_PATIENCE_SECONDS)
        try:
            return await ask(phone)
        finally:
            phone.hang_up()


def _comes_at_s(rng: random.Random, burst_s: float) -> float:
    kind = rng.random()
    if kind < _EARLY_SHARE:
        return rng.uniform(0.0, burst_s)
    if kind < _EARLY_SHARE + _LATE_SHARE:
        return burst_s + rng.uniform(_BURST_SECONDS, _LATE_SECONDS)
    return burst_s + rng.uniform(0.0, _BURST_SECONDS)


def unanswered(history: History) -> Sequence[str]:
    """Return the claims of which nobody has heard anything that stands."""
    known = {o.claim for o in history.operations if o.status not in {0, 202} and o.status not in _BUSY}
    known |= {o.claim for o in history.operations if o.outcome == "waitlisted"}
    return [claim_id for claim_id in history.wishes if claim_id not in known]
