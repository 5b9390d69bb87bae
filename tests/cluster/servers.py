"""Valkeys that know of each other: a cluster of three primaries with a replica each, or a pair behind three Sentinels.

All are real processes of the embedded server's own program, on free ports of loopback.
"""

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import asyncpg
from redis.asyncio import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError

from app.core.embedded.valkey import find_program
from tests.booking.gate.agreement import command
from tests.booking.gate.builders import MadeRelease, make_release

LOOPBACK: Final = "127.0.0.1"
PRIMARIES: Final = 3
# Until the others call a silent node dead. Shorter, and a busy machine makes them call the living dead.
NODE_TIMEOUT_MS: Final = 2_000
SENTINELS: Final = 3
PRIMARY_NAME: Final = "clocktower"
_DOWN_AFTER_MS: Final = 500
# Starting, meeting and failing over take seconds; whatever takes so long does not come any more.
# A Sentinel that was kept from its core for two seconds trusts nobody for thirty.
_PATIENCE_SECONDS: Final = 60.0
_LOOK_EVERY_SECONDS: Final = 0.02
_NOTHING_ON_DISK: Final = ("--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0")
_CLUSTERED: Final = (
    *("--cluster-enabled", "yes"),
    *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
    # Else all nodes refuse everything while one is being replaced.
    *("--cluster-require-full-coverage", "no"),
    # A replica takes over however old its data are: the gate does not rely on them.
    *("--cluster-replica-validity-factor", "0"),
)
_SENTINEL_FILE: Final = f"""
sentinel monitor {PRIMARY_NAME} {LOOPBACK} {{port}} 2
sentinel down-after-milliseconds {PRIMARY_NAME} {_DOWN_AFTER_MS}
sentinel failover-timeout {PRIMARY_NAME} 3000
"""


def free_ports(count: int) -> list[int]:
    """Return so many different ports of loopback on which nobody listens."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in taken]


class Valkey:
    """One process, which can be killed, frozen, thawed and started again."""

    def __init__(self, directory: Path, port: int, *options: str) -> None:
        self.port = port
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in its directory, with nothing of what it held before."""
        self._directory.mkdir(exist_ok=True)
        words = [*self._options, "--port", str(self.port), "--bind", LOOPBACK, "--dir", str(self._directory)]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own installation's program, our own words
                [str(find_program()), *words], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    @property
    def is_down(self) -> bool:
        """Tell whether no process runs."""
        return self._process is None or self._process.poll() is not None

    @property
    def pid(self) -> int:
        """Return its process's number."""
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it in the middle of whatever it does, frozen or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Redis]:
        """Connect to this very server."""
        async with Redis(host=LOOPBACK, port=self.port, protocol=3, socket_timeout=5.0) as redis:
            yield redis

    async def ask(self, *words: Any) -> Any:
        """Ask this very server something."""
        async with self.client() as redis:
            return await command(redis, *words)

    async def facts(self) -> dict[str, Any]:
        """Return what it says of itself. Raises redis's errors."""
        return cast("dict[str, Any]", await self.ask("INFO"))


async def until_true(condition: Callable[[], Any]) -> None:
    """Return once an awaited condition holds; a server that does not answer yet is waited for."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            if await condition():
                return
        except (RedisError, OSError):
            pass
        assert time.monotonic() < deadline, "it did not come to that in time"
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


class Cluster:
    """Three primaries with a replica each, made by hand as `valkey-cli --cluster create` would."""

    def __init__(self, directory: Path) -> None:
        ports = free_ports(4 * PRIMARIES)
        self.nodes = [
            Valkey(directory / f"node-{n}", ports[2 * n], *_NOTHING_ON_DISK, *_CLUSTERED, "--cluster-port", str(port))
            for n, port in enumerate(ports[1::2])
        ]
        self._bus_ports = ports[1::2]

    @property
    def url(self) -> str:
        """Return the address, with two of the nodes only: the others are heard of from these."""
        return "redis+cluster://" + ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes[:2])

    async def start(self) -> None:
        """Start every node, share out the slots, and return once each knows it of all."""
        for node in self.nodes:
            node.start()
        for number, node in enumerate(self.nodes):
            await until_true(lambda node=node: node.ask("PING"))
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        bounds = [REDIS_CLUSTER_HASH_SLOTS * n // PRIMARIES for n in range(PRIMARIES + 1)]
        for node, first, end in zip(self.nodes, bounds, bounds[1:], strict=False):
            await node.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node, bus_port in zip(self.nodes[1:], self._bus_ports[1:], strict=True):
            await self.nodes[0].ask("CLUSTER", "MEET", LOOPBACK, node.port, bus_port)
        for primary, replica in zip(self.nodes, self.nodes[PRIMARIES:], strict=False):
            name = await self.name_of(primary)
            # As soon as it has heard of its primary.
            await until_true(lambda replica=replica, name=name: replica.ask("CLUSTER", "REPLICATE", name))
        await self.whole()

    async def whole(self) -> None:
        """Start again what is down, and return once every primary has its replica and all agree on that."""
        for node in self.nodes:
            node.start() if node.is_down else node.send(signal.SIGCONT)
        await until_true(self._is_whole)

    async def _is_whole(self) -> bool:
        views = [await node.ask("CLUSTER", "SLOTS") for node in self.nodes]
        shares = [{(part[2][1], *(replica[1] for replica in part[3:])) for part in view} for view in views]
        states = [await node.ask("CLUSTER", "INFO") for node in self.nodes]
        linked = [facts["role"] == "master" or facts["master_link_status"] == "up" for facts in await self._all_facts()]
        pairs = shares[0]
        return (
            all(share == pairs for share in shares)
            and len(pairs) == PRIMARIES
            and all(len(pair) == 2 for pair in pairs)
            and all("cluster_state:ok" in str(state) for state in states)
            and all(linked)
        )

    async def _all_facts(self) -> list[dict[str, Any]]:
        return [await node.facts() for node in self.nodes]

    def kill(self) -> None:
        """End every node."""
        for node in self.nodes:
            node.kill()

    @staticmethod
    async def name_of(node: Valkey) -> str:
        """Return how the cluster calls a node."""
        return cast("bytes", await node.ask("CLUSTER", "MYID")).decode()

    async def holder_of(self, made: MadeRelease) -> Valkey:
        """Return the primary that holds a release's slot, as far as the nodes that answer know."""
        slot = slot_of(made)
        for node in self.nodes:
            with contextlib.suppress(RedisError, OSError):
                for first, last, primary, *_ in await node.ask("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(node for node in self.nodes if node.port == primary[1])
        raise LookupError(slot)

    async def shard_of(self, node: Valkey) -> Sequence[Valkey]:
        """Return a node's whole shard: the primary and its replica."""
        for _, _, *shard in await node.ask("CLUSTER", "SLOTS"):
            ports = {member[1] for member in shard}
            if node.port in ports:
                return [other for other in self.nodes if other.port in ports]
        raise LookupError(node.port)

    async def move_at_once(self, made: MadeRelease, to: Valkey) -> None:
        """Move a release's slot in the way of Valkey 9: its keys are copied, then they all change hands at a moment."""
        slot, source = slot_of(made), await self.holder_of(made)
        await source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", await self.name_of(to))

        async def moved() -> bool:
            return await self.holder_of(made) is to

        await until_true(moved)

    async def move(self, made: MadeRelease, to: Valkey) -> None:
        """Move a release's slot, key by key, as `valkey-cli --cluster reshard` does."""
        slot, source = slot_of(made), await self.holder_of(made)
        await to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", await self.name_of(source))
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", await self.name_of(to))
        while keys := cast("Sequence[bytes]", await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 3)):
            await source.ask("MIGRATE", LOOPBACK, to.port, "", 0, 5_000, "KEYS", *keys)
            # So that somebody claims in between.
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
        name = await self.name_of(to)
        for node in (to, source, *self.nodes):
            with contextlib.suppress(RedisError):
                # Replicas take no such command; they hear of it.
                await node.ask("CLUSTER", "SETSLOT", slot, "NODE", name)


def slot_of(made: MadeRelease) -> int:
    """Return the slot in which all keys of a release lie."""
    return key_slot(made.release_id.hex.encode())


class Sentinels:
    """A primary and a replica, and three Sentinels that watch them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        ports = free_ports(2 + SENTINELS)
        self.pair = [Valkey(directory / f"server-{n}", ports[n], *_NOTHING_ON_DISK) for n in range(2)]
        self.sentinels = [self._sentinel(port) for port in ports[2:]]

    @property
    def url(self) -> str:
        """Return the address, with every Sentinel."""
        named = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{named}/{PRIMARY_NAME}"

    async def start(self) -> None:
        """Start all, and return once every Sentinel knows the replica and both others."""
        primary, replica = self.pair
        for server in self.pair:
            server.start()
            await until_true(lambda server=server: server.ask("PING"))
        await replica.ask("REPLICAOF", LOOPBACK, primary.port)
        for sentinel in self.sentinels:
            self._have_it_watch(sentinel, primary)
            sentinel.start()
        await until_true(self._all_is_known)

    def another(self, *, watching: Valkey) -> Valkey:
        """Add a Sentinel, not started yet, that knows of one server only and takes it for the primary."""
        sentinel = self._sentinel(*free_ports(1))
        self._have_it_watch(sentinel, watching)
        self.sentinels.append(sentinel)
        return sentinel

    def _sentinel(self, port: int) -> Valkey:
        return Valkey(self._directory / f"sentinel-{port}", port, str(self._file_of(port)), "--sentinel")

    def _file_of(self, port: int) -> Path:
        return self._directory / f"sentinel-{port}.conf"

    def _have_it_watch(self, sentinel: Valkey, primary: Valkey) -> None:
        self._file_of(sentinel.port).write_text(_SENTINEL_FILE.format(port=primary.port), "utf-8")

    async def _all_is_known(self) -> bool:
        for sentinel in self.sentinels:
            seen = cast("dict[bytes, bytes]", await sentinel.ask("SENTINEL", "MASTER", PRIMARY_NAME))
            known = (seen.get(b"num-slaves", b""), seen.get(b"num-other-sentinels", b""))
            if known != (b"1", b"%d" % (SENTINELS - 1)):
                return False
        return (await self.pair[1].facts())["master_link_status"] == "up"

    def kill(self) -> None:
        """End all of them."""
        for server in (*self.sentinels, *self.pair):
            server.kill()


async def spread(
    db: "asyncpg.Connection[asyncpg.Record]", cluster: Cluster, each: int, *, capacity: int, waitlist_limit: int = 0
) -> dict[Valkey, list[MadeRelease]]:
    """Publish releases until every primary holds so many."""
    found: defaultdict[Valkey, list[MadeRelease]] = defaultdict(list)
    for _ in range(100):
        if len(found) == PRIMARIES and min(map(len, found.values())) >= each:
            return dict(found)
        made = await make_release(db, capacities=(capacity,), waitlist_limit=waitlist_limit)
        holder = await cluster.holder_of(made)
        if len(found[holder]) < each:
            found[holder].append(made)
    raise AssertionError(found)
