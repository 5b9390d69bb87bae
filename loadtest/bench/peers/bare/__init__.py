"""The yardstick: what uvicorn can do at most, with nothing behind it."""

from collections.abc import Callable, Sequence

from loadtest.bench.peers import Command, Surroundings
from loadtest.bench.peers.serving import python_command


class _Bare:
    name = "bare"
    what = "uvicorn with a bare ASGI function: no routing, no check, the same small answer to every request"

    def install(self, progress: Callable[[str], None]) -> None:
        """Do nothing: it needs no more than this service does."""

    async def prepare(self, surroundings: Surroundings) -> None:
        """Do nothing: it keeps nothing."""

    def command(self, surroundings: Surroundings) -> Command:
        """Return how to start it."""
        return python_command("loadtest.bench.peers.bare.server", surroundings)

    def requests(self, claims: Sequence[bytes], surroundings: Surroundings) -> Sequence[bytes]:
        """Return the claims as they are: it reads none."""
        del surroundings
        return claims

    async def winners(self, surroundings: Surroundings) -> int:
        """Return 0: nobody wins anything here."""
        del surroundings
        return 0


BARE = _Bare()
