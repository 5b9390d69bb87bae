"""Gets what the bench needs from elsewhere, all of it before anything is measured: wrk, and the peers' environments.

At once, since each mostly waits for its registry; and first, so that nobody waits a quarter of an hour to be told that
npm is missing.
"""

import asyncio
from collections.abc import Callable, Sequence

from loadtest.bench.machine import CannotBenchError
from loadtest.bench.peers import CannotRunPeerError, Peer
from loadtest.bench.wrk import require_wrk


async def install(peers: Sequence[Peer], say: Callable[[str], None]) -> str:
    """Install what is not there yet, and return wrk's path. Raises `CannotBenchError` with all that is missing."""
    done = await asyncio.gather(
        require_wrk(say), *(asyncio.to_thread(peer.install, say) for peer in peers), return_exceptions=True
    )
    failures = [one for one in done if isinstance(one, BaseException)]
    for failure in failures:
        if not isinstance(failure, CannotBenchError | CannotRunPeerError):
            raise failure
    if failures:
        raise CannotBenchError("\n".join(map(str, failures)))
    return str(done[0])
