"""Asks which server holds what: the nodes of a cluster for their slots, or the Sentinels for the primary.

Whoever was cut off, frozen or slow tells old news as if it were new. So several are asked at once, and the one with the
highest epoch is believed: a number of the servers' own that grows with every failover.
"""

import asyncio
import random
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from app.core.redis import connections_to, redis_address
from app.core.redis_address import Kind, Node
from app.core.settings import Settings

# Of a large cluster not every node is asked.
_ASKED_MAX: Final = 8
# How long those who know better may take longer than the first who answers.
_GRACE_SECONDS: Final = 0.1


class Part(NamedTuple):
    """Slots in a row, and the primary that holds them."""

    first: int
    last: int
    node: Node


class View(NamedTuple):
    """What one server says of all: as of which epoch, who holds what, and who could be asked besides."""

    epoch: int
    parts: tuple[Part, ...]
    others: frozenset[Node]


class SlotMap:
    """Who holds which release."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = sorted(parts)
        self._firsts = [part.first for part in self._parts]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotMap) and self._parts == other._parts

    __hash__ = None  # pyright: ignore[reportAssignmentType] - replaced as a whole, and a key of nothing

    @property
    def nodes(self) -> set[Node]:
        """Return everybody who holds something."""
        return {part.node for part in self._parts}

    @property
    def count(self) -> int:
        """Return how many slots somebody holds."""
        return sum(part.last - part.first + 1 for part in self._parts)

    def node_of(self, release_id: UUID) -> Node | None:
        """Return who holds the slot of a release's hash tag; None where nobody does."""
        slot = key_slot(release_id.hex.encode())
        at = bisect_right(self._firsts, slot) - 1
        return self._parts[at].node if at >= 0 and slot <= self._parts[at].last else None


class Topology:
    """A cluster, or a primary and its replicas behind Sentinels."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._address = redis_address(settings)
        # Whom to ask: those whom the address names, and whoever was heard of.
        self._known = set(self._address.nodes)

    async def look(self) -> SlotMap:
        """Return who holds what now. Raises redis's errors where nobody can say."""
        asked = [
            asyncio.ensure_future(self._ask(node))
            for node in random.sample(sorted(self._known), min(len(self._known), _ASKED_MAX))
        ]
        try:
            views = await _answers(asked)
        finally:
            for question in asked:
                question.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        best = max(views, key=lambda view: view.epoch)
        self._known = {*self._address.nodes, *best.others}
        return SlotMap(best.parts)

    async def _ask(self, node: Node) -> View:
        address = self._address
        if address.kind is Kind.CLUSTER:
            replies = await self._replies(address.url_of(node), ["CLUSTER", "INFO"], ["CLUSTER", "SLOTS"])
            view_of = partial(_view_of_cluster, node)
        else:
            words = ["SENTINEL", "MASTER", address.primary_name]
            replies = await self._replies(address.url_of_sentinel(node), words)
            view_of = _view_of_sentinel
        try:
            return view_of(*replies)
        except (LookupError, TypeError, ValueError) as error:
            message = f"what {node} says of the servers cannot be understood"
            raise RedisConnectionError(message) from error

    async def _replies(self, url: str, *commands: Sequence[str]) -> list[Any]:
        """Ask on a connection of its own: whoever is asked may be gone the next moment."""
        connection = connections_to(url, self._settings).make_connection()
        try:
            await connection.connect()
            for command in commands:
                await connection.send_command(*command)
            return [await connection.read_response() for _ in commands]
        finally:
            await connection.disconnect(nowait=True)


async def _answers(asked: Sequence["asyncio.Future[View]"]) -> list[View]:
    """Wait for the first answer, and a moment longer. Raises what the last one raised where there is none."""
    views: list[View] = []
    trouble: BaseException = RedisConnectionError("there is nobody to ask")
    loop = asyncio.get_running_loop()
    until_seconds: float | None = None
    waiting = set(asked)
    while waiting:
        patience_seconds = None if until_seconds is None else max(until_seconds - loop.time(), 0.0)
        done, waiting = await asyncio.wait(waiting, timeout=patience_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            break
        for question in done:
            error = question.exception()
            if error is None:
                views.append(question.result())
            elif isinstance(error, RedisError | OSError):
                trouble = error
            else:
                raise error
        if views and until_seconds is None:
            until_seconds = loop.time() + _GRACE_SECONDS
    if not views:
        raise trouble
    return views


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _view_of_cluster(asked: Node, info: bytes | str, slots: list[list[Any]]) -> View:
    facts = dict(line.split(":", 1) for line in _text(info).split() if ":" in line)
    parts: list[Part] = []
    others: set[Node] = set()
    for first, last, *holders in slots:
        # A node that does not know its own address has none here; "?" is one that nobody may know.
        nodes = [Node(_text(host) or asked.host, int(port)) for host, port, *_ in holders if _text(host) != "?"]
        others.update(nodes)
        if nodes:
            parts.append(Part(int(first), int(last), nodes[0]))
    if not parts:
        message = f"the node at {asked} knows of no slots"
        raise RedisConnectionError(message)
    return View(int(facts["cluster_current_epoch"]), tuple(parts), frozenset(others))


def _view_of_sentinel(primary: dict[bytes, bytes]) -> View:
    facts = {_text(name): _text(value) for name, value in primary.items()}
    if "down" in facts["flags"] or "master" not in facts["flags"].split(","):
        message = f"the primary {facts['name']} is down"
        raise RedisConnectionError(message)
    everything = Part(0, REDIS_CLUSTER_HASH_SLOTS - 1, Node(facts["ip"], int(facts["port"])))
    return View(int(facts["config-epoch"]), (everything,), frozenset())
