"""Connections to Redis that never send anything twice by themselves.

redis-py repeats a command up to ten times by default. A claim that was sent and whose answer was lost must be
asked about, not sent again behind our back, so every client made here has that switched off.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, assert_never, cast

from redis._parsers import AsyncCommandsParser
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError

from app.core.redis_address import Kind, RedisAddress
from app.core.settings import Settings

# What redis-py calls the address of a server, in what it reads from a URL.
_ADDRESS_OPTIONS: Final = ("host", "port", "db", "connection_class")


def redis_address(settings: Settings) -> RedisAddress:
    """Return where Redis is."""
    return RedisAddress.of(settings.redis_url.get_secret_value())


def connections_to(url: str, settings: Settings) -> ConnectionPool:
    """Return what makes connections to one server."""
    return ConnectionPool.from_url(url, **_options(settings))  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs


def connect_redis(settings: Settings, *, connections: int = 10) -> Redis:
    """Return a client (bytes in, bytes out) that opens its connections on first use.

    `connections` bounds how many, to each server; a caller beyond that waits for none and gets `MaxConnectionsError`.
    A cluster's client is no `Redis`, but speaks like one: each command and each script goes to the node that has its
    keys, which must lie in one slot; what has no keys is asked of whichever node answers.
    """
    address = redis_address(settings)
    options: dict[str, Any] = {**_options(settings), "decode_responses": False, "max_connections": connections}
    match address.kind:
        case Kind.ONE:
            return Redis.from_url(address.url_of(None), **options)  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
        case Kind.CLUSTER:
            nodes = [ClusterNode(node.host, node.port) for node in address.nodes]
            given = _given_in(address.url_of(address.nodes[0]))
            # A node without a replica may be down for long; the others still have their slots.
            client = _Cluster(startup_nodes=nodes, require_full_coverage=False, **{**options, **given})
            return cast("Redis", client)
        case Kind.SENTINEL:
            return _behind_sentinels(address, options)
        case _:
            assert_never(address.kind)


def _options(settings: Settings) -> dict[str, Any]:
    timeout_seconds = settings.redis_timeout_ms / 1000
    return {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "protocol": 3,
    }


def _given_in(url: str) -> dict[str, Any]:
    """Return what a URL says besides the server's address: user, password, options."""
    given = cast("dict[str, Any]", parse_url(url))
    more = {"ssl": True} if given.get("connection_class") is SSLConnection else {}
    return {name: value for name, value in given.items() if name not in _ADDRESS_OPTIONS} | more


class _Commands(AsyncCommandsParser):
    """Which commands a cluster has, as any primary says. redis-py asks the first alone, which may be the dead one."""

    def __init__(self, primaries: "Callable[[], list[ClusterNode]]") -> None:
        super().__init__()
        self._primaries = primaries

    async def initialize(self, node: ClusterNode | None = None) -> None:
        trouble: BaseException = RedisConnectionError("the cluster has no primary")
        for primary in [*([node] if node else []), *self._primaries()]:
            try:
                return await super().initialize(primary)
            except (RedisError, OSError) as error:
                trouble = error
        raise trouble


class _Cluster(RedisCluster):
    """A cluster as one server: any node answers what is not about a key, and its errors are Redis's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType] - parts of it are untyped
        self.commands_parser = _Commands(self.get_primaries)
        self._answered = ""

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            # While redis-py knows no node it takes any command for one without keys, and any node for the right one.
            await self.initialize()
            return await super().execute_command(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - untyped **kwargs
        except RedisClusterException as error:
            # No node can be reached, or none has the slot. redis-py's own kind of exception is no `RedisError`.
            raise RedisConnectionError(str(error)) from error

    async def ping(self, **_kwargs: Any) -> bool:
        await self._of_whoever_answers("PING")
        return True

    async def time(self, **_kwargs: Any) -> tuple[int, int]:
        return cast("tuple[int, int]", await self._of_whoever_answers("TIME"))

    async def info(self, section: str | None = None, *_more: str, **_kwargs: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", await self._of_whoever_answers("INFO", *([section] if section else [])))

    async def aclose(self) -> None:
        self._lock = self._lock or asyncio.Lock()
        # Under the lock, as nobody else may be looking for the nodes meanwhile.
        async with self._lock:
            if self._initialize:
                # A connection broke, and redis-py forgets that it has others: it would close none of them.
                for kept in ("nodes_cache", "startup_nodes"):
                    await self.nodes_manager.aclose(kept)
        await super().aclose()

    async def _of_whoever_answers(self, *command: str) -> object:
        """Ask one primary after the other, first the one who answered last. Raises what the last one raised.

        The same one, as long as it answers: two nodes' clocks are not one.
        """
        try:
            await self.initialize()
        except RedisClusterException as error:
            raise RedisConnectionError(str(error)) from error
        primaries = self.get_primaries()
        random.shuffle(primaries)
        primaries.sort(key=lambda node: node.name != self._answered)
        trouble: BaseException = RedisConnectionError("the cluster has no primary")
        for node in primaries:
            # Whoever is given up is not asked first again.
            self._answered = ""
            try:
                answer = cast("object", await node.execute_command(*command))
            except (RedisError, OSError) as error:
                trouble = error
            else:
                self._answered = node.name
                return answer
        # Whom it knows is not there: the next command looks who is.
        await self.aclose()
        raise trouble


class _BehindSentinels(Redis):
    """A client of the primary, whichever that is, which closes its lines to the Sentinels with its own."""

    sentinels: Sentinel

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - redis-py's own
        await super().aclose(close_connection_pool)
        await self.sentinels.aclose()


def _behind_sentinels(address: RedisAddress, options: dict[str, Any]) -> Redis:
    to_sentinels = {name: value for name, value in options.items() if name != "max_connections"}
    sentinels = Sentinel(
        [tuple(node) for node in random.sample(address.nodes, len(address.nodes))],
        sentinel_kwargs={**to_sentinels, **_given_in(address.url_of_sentinel(address.nodes[0]))},
        **options,
    )
    given = cast("dict[str, Any]", parse_url(address.url_of(address.nodes[0])))
    client = cast(
        "_BehindSentinels",
        sentinels.master_for(  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
            address.primary_name,
            redis_class=_BehindSentinels,
            db=given.get("db", 0),
            **_given_in(address.url_of(address.nodes[0])),
        ),
    )
    client.sentinels = sentinels
    return client
