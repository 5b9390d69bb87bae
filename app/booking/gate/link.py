"""One connection to Redis, and the certainty of who answers at its other end.

A replica that was promoted with old data looks valid in every way but one: it is another server. So each connection
reads the server's run id and replication id when it connects, and hands them to every script, which compares them with
those that the state was built on. After any error the connection is thrown away, and the next one reads them again.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1
from importlib import resources
from typing import Final, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from app.core.settings import Settings

Argument = bytes | str | int
# What every script answers when the state was built on another server than the connection believes to speak to.
_OTHER_SERVER: Final = b"I"
Reply = bytes | int | list["Reply"] | dict[bytes, bytes] | None


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


CLAIM: Final = Script("claim")
SETTLE: Final = Script("settle")
ACTIVATE: Final = Script("activate")
RETIRE: Final = Script("retire")


class Link:
    """One connection. Used by one task at a time; see `Links`."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._connection: AbstractConnection | None = None
        self.identity = ""

    async def connect(self) -> None:
        """Connect, if not connected, and read who is there."""
        if self._connection is not None:
            return
        connection = self._pool.make_connection()
        try:
            await connection.connect()
            await connection.send_command("INFO", "server", "replication")
            self.identity = _identity_in(cast("bytes", await connection.read_response()))
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection

    async def drop(self) -> None:
        """Throw the connection away. What was sent on it may or may not have been done."""
        connection, self._connection, self.identity = self._connection, None, ""
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def commands(self, commands: Sequence[Sequence[Argument]]) -> list[Reply]:
        """Send these commands in one write and return their replies.

        Raises the first error among the replies, or `ConnectionError`/`TimeoutError` of redis; never sends twice.
        """
        await self.connect()
        connection = self._connection
        assert connection is not None  # noqa: S101 - connect() set it or raised
        failure: RedisError | None = None
        replies: list[Reply] = []
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    replies.append(cast("Reply", await connection.read_response(disconnect_on_error=False)))
                except NoScriptError as error:
                    failure = failure or error
        except BaseException:
            await self.drop()
            raise
        if failure is not None:
            raise failure
        return replies

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> bytes:
        """Run a script whose answer is one string.

        Loads it where the server does not know it: that is the one error after which a repeat cannot do harm,
        because nothing was run.
        """
        call: list[Argument] = ["EVALSHA", script.sha, len(keys), *keys, *arguments]
        try:
            (reply,) = await self.commands([call])
        except NoScriptError:
            _, reply = await self.commands([["SCRIPT", "LOAD", script.source], call])
        if reply == _OTHER_SERVER:
            # Who answers here may have changed without a broken connection (a first replica came, say): look again.
            await self.drop()
        return cast("bytes", reply)


def _identity_in(info: bytes | str) -> str:
    text = info.decode() if isinstance(info, bytes) else info
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return f"{fields['run_id']}/{fields['master_replid']}"


class Links:
    """A fixed number of links, lent to one task at a time; the one used last is lent first."""

    def __init__(self, settings: Settings, count: int) -> None:
        timeout_seconds = settings.redis_timeout_ms / 1000
        self._timeout_seconds = timeout_seconds
        self._pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
            settings.redis_url.get_secret_value(),
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            protocol=3,
        )
        self._closed = False
        self._all = [Link(self._pool) for _ in range(count)]
        self._idle: asyncio.LifoQueue[Link] = asyncio.LifoQueue()
        for link in self._all:
            self._idle.put_nowait(link)

    @asynccontextmanager
    async def lend(self) -> AsyncGenerator[Link]:
        """Lend a connected link. Raises `TimeoutError` where none comes back in time, and redis's errors."""
        if self._closed:
            # A confirmation whose moment came too late, say: a connection made now would never be closed.
            message = "the links are closed"
            raise RedisConnectionError(message)
        async with asyncio.timeout(self._timeout_seconds):
            link = await self._idle.get()
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
        for link in self._all:
            await link.drop()
