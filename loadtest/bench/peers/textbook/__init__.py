"""What the tutorials lead to: FastAPI, and a Lua script in Redis that counts the stock down."""

from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from redis.asyncio import Redis

from loadtest.bench.peers import Command, Surroundings
from loadtest.bench.peers.serving import python_command

# Everything that it keeps begins so, beside the gate's own keys on the same server.
PREFIX: Final = "textbook:"


def stock_key(pool_id: UUID) -> str:
    """Return the key of a pool's stock: how many places are left."""
    return f"{PREFIX}stock:{pool_id}"


def holders_key(release_id: UUID) -> str:
    """Return the key of a release's holders: the people who have a place."""
    return f"{PREFIX}holders:{release_id}"


def claims_key(release_id: UUID) -> str:
    """Return the key of a release's claims: which pool each got."""
    return f"{PREFIX}claims:{release_id}"


class _Textbook:
    name = "textbook"
    what = "FastAPI, pydantic, redis-py: a Lua script for each request counts the stock down; nothing is on disk"

    def install(self, progress: Callable[[str], None]) -> None:
        """Do nothing: it needs no more than this service does."""

    async def prepare(self, surroundings: Surroundings) -> None:
        """Forget everybody, and put the stock in."""
        release_id = surroundings.release_id
        async with _connect(surroundings) as redis:
            await redis.delete(holders_key(release_id), claims_key(release_id))
            for pool_id in surroundings.pool_ids:
                await redis.set(stock_key(pool_id), surroundings.places)

    def command(self, surroundings: Surroundings) -> Command:
        """Return how to start it."""
        return python_command("loadtest.bench.peers.textbook.server", surroundings)

    def requests(self, claims: Sequence[bytes], surroundings: Surroundings) -> Sequence[bytes]:
        """Return the claims as they are."""
        del surroundings
        return claims

    async def winners(self, surroundings: Surroundings) -> int:
        """Count the people in the set of holders."""
        async with _connect(surroundings) as redis:
            return await redis.scard(holders_key(surroundings.release_id))


def _connect(surroundings: Surroundings) -> Redis:
    return Redis(unix_socket_path=str(surroundings.redis_socket))


TEXTBOOK = _Textbook()
