"""What parents do in the days before: sign in, register their children, fetch a pass.

All of it is ordinary API traffic, sent by a bounded number of phones at a time, so that preparing thousands of parents
does not become a rush of its own. Everything is tried again a bounded number of times; what still fails ends the
rehearsal with a sentence, since a crowd that is only half there measures nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

from loadtest import wire
from loadtest.http1 import Answer, Network, NoAnswerError, NoConnectionError, Phone
from loadtest.plan import ParentPlan, birth_month

Item = TypeVar("Item")

PREPARING_PHONES: Final = 64
_TRIES: Final = 8
_AGAIN_SECONDS: Final = 0.5
_BUSY_STATUSES: Final = frozenset({429, 503})
_REQUEST_SECONDS: Final = 30.0
# The consent text the demonstration family agreed to.
CONSENT_VERSION: Final = "2026-09"


class CannotRunError(Exception):
    """The rehearsal could not take place. The message is a sentence for the operator."""


@dataclass(slots=True)
class Parent:
    """A parent who has signed in; the pass comes later."""

    plan: ParentPlan
    access_token: str
    account_id: str
    people: tuple[str, ...]
    pass_token: str = ""
    eligible: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])


async def call(phone: Phone, method: str, path: str, *, token: str | None = None, body: object | None = None) -> Answer:
    """Send one preparing request; tried again when busy or unanswered. Raises `CannotRunError` when it never succeeds.

    Meant for requests that may be sent twice without harm.
    """
    headers = {"Accept-Language": "en"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    message = phone.network.compose(method, path, headers, None if body is None else wire.encode(body))
    return await _persist(phone, message, f"{method} {path}")


async def _persist(phone: Phone, message: bytes, what: str) -> Answer:
    trouble = ""
    for _ in range(_TRIES):
        try:
            answer = await phone.send(message)
        except (NoAnswerError, NoConnectionError) as error:
            trouble = f"no answer ({error})"
            await asyncio.sleep(_AGAIN_SECONDS)
            continue
        if answer.status not in _BUSY_STATUSES:
            return answer
        trouble = f"status {answer.status}"
        await asyncio.sleep(retry_after_seconds(answer) or _AGAIN_SECONDS)
    raise CannotRunError(f"{what}: {trouble}, {_TRIES} times.")


def retry_after_seconds(answer: Answer) -> float | None:
    """Read Retry-After where it is a number of seconds (RFC 9110, section 10.2.3)."""
    value = answer.headers.get(b"retry-after", b"")
    return float(value) if value.isdigit() else None


def person_body(plan: ParentPlan, child: int, today: datetime) -> dict[str, object]:
    """Build the body that registers one child of a parent."""
    return {
        # A made-up name that nobody can take for a child's.
        "nickname": f"儿童{'甲乙'[child]}{plan.number:05d}",
        "birth_month": birth_month(plan.children_age_months[child], today.year, today.month),
        "relation": "child",
        "resident_unit_id": None,
        "consent": {"version": CONSENT_VERSION, "purposes": ["booking"]},
    }


async def for_each(items: Sequence[Item], workers: int, work: Callable[[Item], Awaitable[None]]) -> None:
    """Run `work` over all items, at most `workers` at a time; the first error ends the others."""
    remaining = iter(items)

    async def drain() -> None:
        for item in remaining:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(workers, len(items))):
            group.create_task(drain())


class Preparation:
    """The phones that prepare a crowd, shared by its parents."""

    def __init__(self, network: Network, *, run_name: str, said: Callable[[int], None]) -> None:
        """Take a name for this run, which keeps its accounts apart from another's, and a callback for progress."""
        self._network = network
        self._run_name = run_name
        self._said = said
        self._idle: asyncio.Queue[Phone] = asyncio.Queue()
        for _ in range(PREPARING_PHONES):
            self._idle.put_nowait(Phone(network, limit_seconds=_REQUEST_SECONDS))
        self._done = 0

    async def ask(self, method: str, path: str, *, token: str | None = None, body: object | None = None) -> Answer:
        """Send one request on the next idle phone; see `call`."""
        phone = await self._idle.get()
        try:
            return await call(phone, method, path, token=token, body=body)
        finally:
            self._idle.put_nowait(phone)

    async def send(self, message: bytes) -> Answer:
        """Send composed bytes that may be sent twice without harm. Raises `CannotRunError` when it never succeeds."""
        phone = await self._idle.get()
        try:
            return await _persist(phone, message, "A request")
        finally:
            self._idle.put_nowait(phone)

    def _one_more(self) -> None:
        self._done += 1
        self._said(self._done)

    async def sign_in(self, plans: Sequence[ParentPlan], today: datetime) -> list[Parent]:
        """Sign every parent in and register the children. Raises `CannotRunError`."""
        parents: dict[int, Parent] = {}
        self._done = 0

        async def one(plan: ParentPlan) -> None:
            code = f"demo-{self._run_name}-{plan.number:05d}"
            signed = _shape(await self.ask("POST", "/v1/auth/wechat", body={"code": code}), wire.SignedIn)
            people: list[str] = []
            for child in range(len(plan.children_age_months)):
                body = person_body(plan, child, today)
                answer = await self.ask("POST", "/v1/me/people", token=signed.access_token, body=body)
                people.append(_shape(answer, wire.Identified).id)
            parents[plan.number] = Parent(plan, signed.access_token, signed.account.id, tuple(people))
            self._one_more()

        await without_groups(for_each(plans, PREPARING_PHONES, one))
        return [parents[plan.number] for plan in plans]

    async def fetch_passes(self, parents: Sequence[Parent], release_id: str) -> None:
        """Fetch everybody's pass. Raises `CannotRunError`."""
        self._done = 0

        async def one(parent: Parent) -> None:
            answer = await self.ask(
                "POST",
                f"/v1/releases/{release_id}/pass",
                token=parent.access_token,
                body={"people": list(parent.people)},
            )
            given = _shape(answer, wire.PassBody)
            parent.pass_token = given.token
            parent.eligible = {person.id: frozenset(person.pools) for person in given.people}
            self._one_more()

        await without_groups(for_each(parents, PREPARING_PHONES, one))


def _shape(answer: Answer, shape: type[wire.Shape]) -> wire.Shape:
    try:
        return wire.read(answer, shape)
    except wire.UnreadableError as error:
        raise CannotRunError(f"The crowd could not be prepared: {error}") from error


async def without_groups(work: Awaitable[None]) -> None:
    """Await a task group's work; of many failures say the first, since they are the same one."""
    try:
        await work
    except ExceptionGroup as group:
        failures, _ = group.split(CannotRunError)
        raise (_first_of(failures) if failures is not None else group) from group


def _first_of(group: ExceptionGroup[CannotRunError]) -> Exception:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first
