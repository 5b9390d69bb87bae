"""One connection to Redis, and the certainty of who answers at its other end.

A replica that was promoted with old data looks valid in every way but one: it is another server. So each connection
reads the server's run id and replication id when it connects, and hands them to every script, which compares them with
those that the state was built on. After any error the connection is thrown away, and the next one reads them again.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1
from importlib import resources
from typing import Final, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.core.redis import connections_to, redis_address
from app.core.redis_address import Node
from app.core.settings import Settings

Argument = bytes | str | int
# What every script answers when the state was built on another server than the connection believes to speak to.
OTHER_SERVER: Final = b"I"
Reply = bytes | int | list["Reply"] | dict[bytes, bytes] | None


class Elsewhere(ResponseError):  # noqa: N818 - a place, not a failure
    """The release is held by another server by now: what was asked was not done here."""


def nothing() -> None:
    """Do nothing: where there is one server, there is nowhere else to look."""


def ms_of_time(reply: Reply) -> int:
    """Return what Redis answered to `TIME` as ms since 1970."""
    seconds, microseconds = cast("list[bytes]", reply)
    return int(seconds) * 1000 + int(microseconds) // 1000


class Script:
    """A Lua script that stands beside this module, known to Redis by its SHA-1."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = resources.files(__package__ or "").joinpath(f"{name}.lua").read_bytes()
        self.sha = sha1(self.source, usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[str], arguments: Sequence[Argument]) -> list[Argument]:
        """Return the command that runs it, where the server knows it."""
        return ["EVALSHA", self.sha, len(keys), *keys, *arguments]


CLAIM: Final = Script("claim")
SETTLE: Final = Script("settle")
ACTIVATE: Final = Script("activate")
RETIRE: Final = Script("retire")


class _Expected:
    """The replies to some commands that were sent in one write."""

    __slots__ = ("count", "future", "replies")

    def __init__(self, count: int, future: "asyncio.Future[list[Reply | RedisError]]") -> None:
        self.count = count
        self.future = future
        self.replies: list[Reply | RedisError] = []


class _Wire(asyncio.Protocol):
    """The two directions of a connection: commands go out at once, replies come back in the same order.

    redis-py makes the connection (addresses, TLS, passwords) and hands it over; its own way of reading costs a gate
    that asks thousands of times a second several tasks and timers for each reply.
    """

    def __init__(self, transport: asyncio.Transport, in_doubt: Callable[[], None]) -> None:
        self.transport = transport
        self.is_lost = False
        self._in_doubt = in_doubt
        self._reader = hiredis.Reader(protocolError=RedisConnectionError, replyError=_error_in)
        self._expected: deque[_Expected] = deque()

    def send(self, commands: Sequence[Sequence[Argument]]) -> "asyncio.Future[list[Reply | RedisError]]":
        """Send commands in one write; the future gets a reply or an error for each, or fails if the wire is lost."""
        # First of all: of commands that cannot be written no replies may be expected.
        packed = b"".join([_pack(tuple(command)) for command in commands])
        future: asyncio.Future[list[Reply | RedisError]] = asyncio.get_running_loop().create_future()
        self._expected.append(_Expected(len(commands), future))
        self.transport.write(packed)
        return future

    def data_received(self, data: bytes) -> None:
        """Hand each reply to whoever waits for it."""
        reader, expected = self._reader, self._expected
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if type(reply) is hiredis.PushNotification:
                    # News that a server may tell at any time (RESP3), and no reply: nobody here has asked for any.
                    continue
                first = expected[0]
                first.replies.append(cast("Reply | RedisError", reply))
                if len(first.replies) == first.count:
                    expected.popleft()
                    if not first.future.done():
                        first.future.set_result(first.replies)
        except (RedisError, IndexError) as error:
            # Not Redis's protocol, or a reply that nobody asked for: whose the next one would be is not known.
            self.connection_lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits."""
        if not self.is_lost:
            self._in_doubt()
        self.is_lost = True
        self.transport.abort()
        expected, self._expected = self._expected, deque()
        for one in expected:
            if not one.future.done():
                one.future.set_exception(RedisConnectionError(f"the connection was lost: {type(exc).__name__}"))


class Link:
    """One connection.

    Those of `Links.lend` are used by one task at a time. On the claims' own (`Links.claims`) several calls are under
    way at once; an error of one breaks the connection for all of them.

    `in_doubt` is called whenever a connection cannot be made, or is given up: the server may be the wrong one by now.
    """

    def __init__(self, pool: ConnectionPool, timeout_seconds: float, in_doubt: Callable[[], None] = nothing) -> None:
        self._pool = pool
        self._in_doubt = in_doubt
        self._timeout_seconds = timeout_seconds
        self._connection: AbstractConnection | None = None
        self._wire: _Wire | None = None
        self._connecting = asyncio.Lock()
        self._is_over = False
        self.identity = ""

    @property
    def is_up(self) -> bool:
        """Tell whether a call can be sent now."""
        wire = self._wire
        # One that was closed before it became a wire tells the wire nothing of it.
        return wire is not None and not (wire.is_lost or wire.transport.is_closing())

    async def connect(self) -> None:
        """Connect, if not connected, and read who is there. Raises redis's errors; after `end` always."""
        async with self._connecting:
            if self.is_up:
                return
            await self.drop()
            if self._is_over:
                # A confirmation whose moment came too late, say: nobody would ever close what is connected now.
                message = "the link is closed"
                raise RedisConnectionError(message)
            connection = self._pool.make_connection()
            try:
                await connection.connect()
                await connection.send_command("INFO", "server", "replication")
                identity = _identity_in(cast("bytes", await connection.read_response()))
            except BaseException:
                self._in_doubt()
                await connection.disconnect(nowait=True)
                raise
            # Nothing has been asked that is not answered, so nothing is left in redis-py's own reader.
            transport = _transport_of(connection)
            self._connection, self.identity = connection, identity
            self._wire = _Wire(transport, self._in_doubt)
            transport.set_protocol(self._wire)

    async def drop(self) -> None:
        """Throw the connection away. What was sent on it may or may not have been done."""
        wire, self._wire = self._wire, None
        connection, self._connection, self.identity = self._connection, None, ""
        if wire is not None:
            wire.connection_lost(None)
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def end(self) -> None:
        """Throw the connection away, and connect no more."""
        self._is_over = True
        # Whoever connects at this moment comes first, so that it is known what there is to be closed.
        async with self._connecting:
            await self.drop()

    def cut(self) -> None:
        """Let nothing more be sent here; whoever waits is told. The next who wants the link connects it anew."""
        if self._wire is not None:
            self._wire.connection_lost(None)

    def post(self, commands: Sequence[Sequence[Argument]]) -> "asyncio.Future[list[Reply | RedisError]]":
        """Send commands now, in one write; never sends twice.

        The future gets a reply or Redis's error for each, or fails with `ConnectionError`/`TimeoutError` of redis.
        After a failure, and after an error that is not `NoScriptError`, the link is to be dropped. Raises
        `ConnectionError` where the link is not up.
        """
        wire = self._wire
        if wire is None or not self.is_up:
            message = "the link is not up"
            raise RedisConnectionError(message)
        future = wire.send(commands)
        timer = asyncio.get_running_loop().call_later(self._timeout_seconds, _give_up, wire, future)
        future.add_done_callback(lambda _: timer.cancel())
        return future

    async def commands(self, commands: Sequence[Sequence[Argument]]) -> list[Reply]:
        """Send these commands in one write and return their replies.

        Raises the first error among the replies, or `ConnectionError`/`TimeoutError` of redis; never sends twice.
        """
        await self.connect()
        try:
            replies = await self.post(commands)
        except BaseException:
            await self.drop()
            raise
        failure = next((reply for reply in replies if isinstance(reply, RedisError)), None)
        if failure is not None:
            if not isinstance(failure, NoScriptError):
                await self.drop()
            raise failure
        return cast("list[Reply]", replies)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> bytes:
        """Run a script whose answer is one string.

        Loads it where the server does not know it: that is the one error after which a repeat cannot do harm,
        because nothing was run.
        """
        call = script.call(keys, arguments)
        try:
            (reply,) = await self.commands([call])
        except NoScriptError:
            _, reply = await self.commands([["SCRIPT", "LOAD", script.source], call])
        if reply == OTHER_SERVER:
            # Who answers here may have changed without a broken connection (a first replica came, say): look again.
            await self.drop()
        return cast("bytes", reply)


def _transport_of(connection: AbstractConnection) -> asyncio.Transport:
    """Take what redis-py has connected. It names it for nobody, so a newer redis-py may need another word here."""
    writer = cast("asyncio.StreamWriter", connection._writer)  # pyright: ignore[reportUnknownMemberType] # noqa: SLF001
    return cast("asyncio.Transport", writer.transport)


def _give_up(wire: _Wire, future: "asyncio.Future[list[Reply | RedisError]]") -> None:
    if not future.done():
        future.set_exception(RedisTimeoutError("no reply in time"))
    # Whatever comes now comes too late, for those behind it as well.
    wire.connection_lost(None)


def _error_in(message: str) -> RedisError:
    match message.partition(" ")[0]:
        case "NOSCRIPT":
            return NoScriptError(message)
        case "MOVED":
            return Elsewhere(message)
        case _:
            return ResponseError(message)


def _pack(command: tuple[Argument, ...]) -> bytes:
    # hiredis types a command as a tuple of one.
    return cast("bytes", hiredis.pack_command(command))  # pyright: ignore[reportArgumentType, reportUnknownMemberType]


def _identity_in(info: bytes | str) -> str:
    text = info.decode() if isinstance(info, bytes) else info
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if missing := {"role", "run_id", "master_replid"} - fields.keys():
        message = f"the server does not say who it is: its INFO has no {', '.join(sorted(missing))}"
        raise RedisConnectionError(message)
    if fields["role"] != "master":
        # Its state is somebody else's, and it takes no writes.
        message = "the server is a replica"
        raise RedisConnectionError(message)
    return f"{fields['run_id']}/{fields['master_replid']}"


class Links:
    """Some links to one server, lent to one task at a time, the one used last first; and one for the claims.

    `node` says which server; None is the only one that there is.
    """

    def __init__(
        self, settings: Settings, count: int, node: Node | None = None, in_doubt: Callable[[], None] = nothing
    ) -> None:
        timeout_seconds = settings.redis_timeout_ms / 1000
        self._timeout_seconds = timeout_seconds
        pool = connections_to(redis_address(settings).url_of(node), settings)
        self._closed = False
        # The claims' own, lent to nobody.
        self.claims = Link(pool, timeout_seconds, in_doubt)
        self._all = [Link(pool, timeout_seconds, in_doubt) for _ in range(count)]
        self._idle: asyncio.LifoQueue[Link] = asyncio.LifoQueue()
        for link in self._all:
            self._idle.put_nowait(link)

    @asynccontextmanager
    async def lend(self) -> AsyncGenerator[Link]:
        """Lend a connected link. Raises redis's errors, its `TimeoutError` where none comes back in time."""
        if self._closed:
            # A confirmation whose moment came too late, say: a connection made now would never be closed.
            message = "the links are closed"
            raise RedisConnectionError(message)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                link = await self._idle.get()
        except TimeoutError as error:
            message = "no link came back in time"
            raise RedisTimeoutError(message) from error
        try:
            await link.connect()
            yield link
        finally:
            if self._closed:
                await link.drop()
            self._idle.put_nowait(link)

    async def close(self) -> None:
        """Close every connection; those that are lent are closed at their return too, and none is made any more."""
        self._closed = True
        await self.claims.end()
        for link in self._all:
            await link.drop()
