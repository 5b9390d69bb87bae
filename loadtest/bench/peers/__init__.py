"""What a town would run instead of this service, each written as its own users would write it.

A peer takes the same requests as the gate (`PUT /v1/claims/{id}` with a pass and a JSON body) unless its protocol is
its own, answers with the same statuses, and makes the same checks, its signature check included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a peer finds when it starts. The engines run already, and the release has its state in Redis.

    `pool_ids` stand in the order of their ordinals, `epoch` is the one in force. `state_dir` is a directory of the
    peer's own, empty at its first start; `port` is free on 127.0.0.1. A peer with tables or keys of its own offers
    `places` in each pool: none where refusals are measured.
    """

    redis_socket: Path
    database_url: str
    pass_key: str
    release_id: UUID
    pool_ids: tuple[UUID, ...]
    epoch: int
    places: int
    state_dir: Path
    port: int


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a server that answers on `Surroundings.port`; `environment` is added to this process's own."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    directory: Path | None = None


class CannotRunPeerError(Exception):
    """Something that a peer needs is missing. The text says what, and how to get it."""


class Peer(Protocol):
    """A server to measure beside ours."""

    name: str
    # One line for the table: what it is and what it does for a request.
    what: str

    def install(self, progress: Callable[[str], None]) -> None:
        """Make its environment under `build/bench/`, once. Raises `CannotRunPeerError`."""
        ...

    async def prepare(self, surroundings: Surroundings) -> None:
        """Make the tables and keys that it needs, empty ones where there were some."""
        ...

    def command(self, surroundings: Surroundings) -> Command:
        """Return how to start it."""
        ...

    def requests(self, claims: Sequence[bytes], surroundings: Surroundings) -> Sequence[bytes]:
        """Return whole HTTP requests that ask for what these claims (whole HTTP requests) ask for: often the same."""
        ...

    async def winners(self, surroundings: Surroundings) -> int:
        """Count, in its database, the places that somebody has."""
        ...
