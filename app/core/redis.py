"""Connections to Redis that never send anything twice by themselves.

redis-py repeats a command up to ten times by default. A claim that was sent and whose answer was lost must be
asked about, not sent again behind our back, so every client made here has that switched off.
"""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.core.settings import Settings


def connect_redis(settings: Settings, *, connections: int = 10) -> Redis:
    """Return a client (bytes in, bytes out) that opens its connections on first use.

    `connections` bounds how many; a caller beyond that waits for none and gets `MaxConnectionsError`.
    """
    timeout_seconds = settings.redis_timeout_ms / 1000
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType] - redis-py leaves **kwargs untyped
        settings.redis_url.get_secret_value(),
        decode_responses=False,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        max_connections=connections,
        protocol=3,
    )
