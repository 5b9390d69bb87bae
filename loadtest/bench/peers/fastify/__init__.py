"""The strongest peer: Node's quickest framework and its Redis client, with this service's own script behind them."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Final, cast

from redis.asyncio import Redis

from app.booking.gate.keys import EpochKeys
from app.booking.gate.records import PoolCounts
from app.core.settings import Settings
from loadtest.bench.peers import CannotRunPeerError, Command, Surroundings
from loadtest.bench.peers.building import building_site
from loadtest.bench.peers.serving import surroundings_variable

# `crypto.hash` came with it.
_NODE_MIN: Final = (20, 12)
_HOW_TO_GET_IT: Final = "Node.js 20.12 or newer is needed, with npm: from your system's packages"
_INSTALL: Final = ("ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier")
_INSTALL_SECONDS_MAX: Final = 600
_LOCK: Final = "package-lock.json"
_FILES: Final = ("package.json", _LOCK, "server.mjs", "claims.mjs", "refusals.mjs")


class _Fastify:
    name = "fastify"
    what = (
        "Fastify and ioredis on Node: the same script, pipelined; a yes is not written to PostgreSQL, "
        "so only its refusals compare"
    )

    def install(self, progress: Callable[[str], None]) -> None:
        """Put the server and what it needs where Node finds both. Raises `CannotRunPeerError`."""
        _node()
        site = building_site(self.name)
        site.mkdir(parents=True, exist_ok=True)
        here = resources.files(__name__)
        for name in _FILES:
            site.joinpath(name).write_bytes(here.joinpath(name).read_bytes())
        installed = site / "installed.lock"
        lock = site.joinpath(_LOCK).read_bytes()
        if installed.exists() and installed.read_bytes() == lock:
            return
        npm = shutil.which("npm")
        if npm is None:
            raise CannotRunPeerError(f"npm was not found. {_HOW_TO_GET_IT}.")
        progress("Installing Fastify and ioredis with npm")
        done = subprocess.run(  # noqa: S603 - our own words
            [npm, *_INSTALL], cwd=site, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS_MAX
        )
        if done.returncode != 0:
            raise CannotRunPeerError(f"npm could not install Fastify and ioredis: {done.stderr.strip()[-600:]}")
        # Last, so that what was left half done is done again.
        installed.write_bytes(lock)

    async def prepare(self, surroundings: Surroundings) -> None:
        """Do nothing: the state in Redis is the gate's own."""

    def command(self, surroundings: Surroundings) -> Command:
        """Return how to start it."""
        return Command(
            (_node(), "server.mjs"),
            {
                **surroundings_variable(surroundings),
                "PEER_SCRIPT": str(resources.files("app.booking.gate").joinpath("claim.lua")),
                "PEER_PENDING_MS": str(Settings.model_fields["pending_deadline_ms"].default),
                "NODE_ENV": "production",
            },
            building_site(self.name),
        )

    def requests(self, claims: Sequence[bytes], surroundings: Surroundings) -> Sequence[bytes]:
        """Return the claims as they are."""
        del surroundings
        return claims

    async def winners(self, surroundings: Surroundings) -> int:
        """Count the places that are not free, by the gate's own counts."""
        keys = EpochKeys(surroundings.release_id, surroundings.epoch)
        async with Redis(unix_socket_path=str(surroundings.redis_socket)) as redis:
            ordinals = [str(ordinal) for ordinal in range(len(surroundings.pool_ids))]
            packed = cast("list[bytes]", await redis.hmget(keys.pools, ordinals))
        pools = [PoolCounts.unpack(pool) for pool in packed]
        return sum(pool.capacity - pool.free for pool in pools)


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        raise CannotRunPeerError(f"Node.js was not found. {_HOW_TO_GET_IT}.")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603 - found on the PATH
    version = tuple(int(part) for part in said.strip().removeprefix("v").split(".")[:2])
    if version < _NODE_MIN:
        raise CannotRunPeerError(f"Node.js is {said.strip()}. {_HOW_TO_GET_IT}.")
    return node


FASTIFY = _Fastify()
