"""The peers, by name. Apart from the interface, so that who needs that alone does not load them all."""

from collections.abc import Mapping
from typing import Final

from loadtest.bench.peers import Peer
from loadtest.bench.peers.bare import BARE
from loadtest.bench.peers.fastify import FASTIFY
from loadtest.bench.peers.pretix import PRETIX
from loadtest.bench.peers.row_lock import ROW_LOCK
from loadtest.bench.peers.skip_locked import SKIP_LOCKED
from loadtest.bench.peers.textbook import TEXTBOOK

_ALL: Final[tuple[Peer, ...]] = (BARE, TEXTBOOK, FASTIFY, ROW_LOCK, SKIP_LOCKED, PRETIX)
PEERS: Final[Mapping[str, Peer]] = {peer.name: peer for peer in _ALL}
