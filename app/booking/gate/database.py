"""Connections to PostgreSQL for the gate, with time-outs that hold even when the server says nothing more."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

# After these nothing is known of the connection: it may be waiting for an answer that never comes.
_IN_DOUBT = (
    OSError,
    asyncio.CancelledError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
)


@asynccontextmanager
async def borrowed(
    database: asyncpg.Pool, *, timeout_seconds: float
) -> AsyncGenerator["asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"]:
    """Lend a connection for at most so long, waiting for it included twice at the most.

    When the time is up the connection is cut first and the borrower told second: what a borrower still does on its way
    out (rolling back, giving a lock back) fails at once instead of waiting for a server that is silent. The server
    hears of the cut, or of the silence (see `line_settings`), and lets go of what the connection held.

    One that is in doubt is cut as well: handing it back would wait for the server to confirm a cancellation, and a
    frozen server confirms nothing. Raises `TimeoutError`, `OSError`, `asyncpg.PostgresError` and
    `asyncpg.InterfaceError`: what the driver says when the server's last words find it unprepared is the last, too.
    """
    try:
        async with _lent(database, timeout_seconds) as connection:
            yield connection
    except asyncpg.InternalClientError as error:
        raise asyncpg.InterfaceError(f"the connection was lost: {error}") from error


@asynccontextmanager
async def _lent(
    database: asyncpg.Pool, timeout_seconds: float
) -> AsyncGenerator["asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"]:
    connection = await database.acquire(timeout=timeout_seconds)
    loop = asyncio.get_running_loop()
    limit = asyncio.timeout(None)

    is_cut = False

    def time_is_up() -> None:
        nonlocal is_cut
        is_cut = True
        connection.terminate()
        limit.reschedule(loop.time())

    try:
        async with limit:
            alarm = loop.call_later(timeout_seconds, time_is_up)
            try:
                yield connection
            finally:
                alarm.cancel()
    except _IN_DOUBT as error:
        if not is_cut:
            connection.terminate()
        elif not isinstance(error, TimeoutError | asyncio.CancelledError):
            # What the last steps met on the cut connection says less than why it was cut.
            raise TimeoutError from error
        raise
    finally:
        await database.release(connection)


async def leave_as_it_is(_connection: object) -> None:
    """Do nothing to a connection that comes back to the gate's pool.

    The driver would end whatever a session can hold, by a round trip of its own that every winner waits for. The gate
    holds nothing beyond a transaction but the lock of a rebuild, which gives it back itself or ends the connection.
    """


def line_settings(*, silence_ms: int) -> dict[str, str]:
    """Return the server's settings for connections whose other end may vanish without a word.

    A transaction in which nothing happens for `silence_ms`, or a line on which nothing arrives for about as long, is
    ended by the server, with the locks that it held: others must not wait for whoever lost the line in a rebuild.
    """
    seconds = max(silence_ms // 1_000, 1)
    return {
        "idle_in_transaction_session_timeout": str(silence_ms),
        "tcp_user_timeout": str(silence_ms),
        "tcp_keepalives_idle": str(seconds),
        "tcp_keepalives_interval": str(max(seconds // 4, 1)),
        "tcp_keepalives_count": "4",
    }
