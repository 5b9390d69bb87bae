"""The servers that hold the releases' states: one, or the primaries of a cluster, or the one that Sentinels name.

A release lies whole on one server, found by its hash tag. Who holds what is looked up when something speaks against
what is known: a connection that breaks or cannot be made, a server that says "moved". It is never taken from the words
of an error: those tell of one slot, and come from a server that may be behind the times itself.

A wrong answer here costs time and nothing else: a state is used only on the server that it was built on (see `link`),
in the epoch that PostgreSQL has.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from uuid import UUID

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from app.booking.gate.link import Links, nothing
from app.booking.gate.topology import SlotMap, Topology
from app.core.redis import redis_address
from app.core.redis_address import Kind, Node
from app.core.settings import Settings
from app.core.tasks import Chores

log = structlog.get_logger(__name__)

# Who holds what is looked up so often at the most, however many connections break.
_LOOK_EVERY_SECONDS: Final = 0.1


class Nodes:
    """Links to each server that holds something, and which of them holds which release."""

    def __init__(self, settings: Settings, links_each: int, chores: Chores) -> None:
        self._settings = settings
        self._links_each = links_each
        self._chores = chores
        is_one = redis_address(settings).kind is Kind.ONE
        self._only = Links(settings, links_each) if is_one else None
        self._topology = None if is_one else Topology(settings)
        self._links: dict[Node, Links] = {}
        self._map = SlotMap(())
        self._is_in_doubt = True
        self._looking: asyncio.Task[RedisError | OSError | None] | None = None
        self._looked_at = float("-inf")
        self._is_closed = False
        # Called when releases are held by others than before.
        self.when_moved: Callable[[], None] = nothing

    @property
    def are_several(self) -> bool:
        """Tell whether another server may answer where one does not."""
        return self._only is None

    def at(self, release_id: UUID) -> Links | None:
        """Return the links to whoever holds a release, as far as is known."""
        if self._only is not None:
            return self._only
        node = self._map.node_of(release_id)
        return None if node is None else self._links.get(node)

    async def of(self, release_id: UUID, *, anew: bool = False) -> Links:
        """Return the links to whoever holds a release; looks who that is if there is doubt, or `anew` in any case.

        Raises redis's errors where nobody can say, or nobody holds it.
        """
        if anew or self._is_in_doubt:
            await self.look()
        links = self.at(release_id)
        if links is None:
            message = "no server holds the slot of the release"
            raise RedisConnectionError(message)
        return links

    async def every(self) -> Sequence[Links]:
        """Return the links to each server that holds something. Raises redis's errors where nobody can say who."""
        if self._only is not None:
            return [self._only]
        await self.look()
        return tuple(self._links.values())

    async def look(self) -> None:
        """Look who holds what; those who ask at the same time share a look. Raises redis's errors."""
        if self._topology is None:
            return
        # Shielded: the one who asked first may hang up.
        error = await asyncio.shield(self._looking or self._begin(self._topology))
        if error is not None:
            raise error

    async def close(self) -> None:
        """Close every connection; none is made any more."""
        self._is_closed = True
        for links in (self._only, *self._links.values()):
            if links is not None:
                await links.close()

    def _doubt(self, node: Node) -> None:
        """Look who holds what, since a connection to this server is lost or cannot be made."""
        if self._is_closed or self._topology is None or node not in self._links:
            return
        self._is_in_doubt = True
        if self._looking is None:
            self._begin(self._topology)

    def _begin(self, topology: Topology) -> "asyncio.Task[RedisError | OSError | None]":
        self._looking = self._chores.start(self._look(topology))
        self._looking.add_done_callback(self._looked)
        return self._looking

    def _looked(self, _: object) -> None:
        self._looking = None

    async def _look(self, topology: Topology) -> RedisError | OSError | None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(self._looked_at + _LOOK_EVERY_SECONDS - loop.time(), 0.0))
        self._looked_at = loop.time()
        # What breaks from here on may be news that the look comes too early for.
        self._is_in_doubt = False
        try:
            found = await topology.look()
        except (RedisError, OSError) as error:
            self._is_in_doubt = True
            return error
        await self._follow(found)
        return None

    async def _follow(self, found: SlotMap) -> None:
        if found == self._map or self._is_closed:
            return
        self._map = found
        gone = [self._links.pop(node) for node in self._links.keys() - found.nodes]
        for node in found.nodes - self._links.keys():
            self._links[node] = Links(self._settings, self._links_each, node, partial(self._doubt, node))
        log.info("gate_nodes_changed", nodes=sorted(map(str, found.nodes)))
        self.when_moved()
        for links in gone:
            await links.close()
