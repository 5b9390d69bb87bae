"""Names of the gate's keys in Redis. One release, one hash tag: one script sees all of it, on one node of a cluster."""

from typing import Final
from uuid import UUID

# How long keys of an epoch that is not in force stay: longer than any rebuild takes.
LOADING_EXPIRY_SECONDS: Final = 900
# Which keys are a gate's, as `SCAN` takes it.
EVERY_GATE_KEY: Final = "ct:{*}:*"
# Redis keeps a hash of few small fields as a list, and reads it from its front at each look (up to 512 fields of up to
# 64 bytes, unless told otherwise). A field that is larger makes it a table from the start, so that the three hundredth
# holder is found as quickly as the first. It stands for nobody.
BALLAST_FIELD: Final = b""
BALLAST: Final = bytes(128)


def meta_key(release_id: UUID) -> str:
    """Return the key that says which epoch is in force, and how the release is set up."""
    return f"ct:{{{release_id.hex}}}:meta"


def read_key(key: bytes) -> tuple[UUID, int | None] | None:
    """Return the release that a key belongs to, and its epoch (None: the meta key); or None for a key of others."""
    match key.decode(errors="replace").split(":"):
        case ["ct", tag, part, *_] if part == "meta" or part.isdecimal():
            try:
                release_id = UUID(hex=tag.strip("{}"))
            except ValueError:
                return None
            return release_id, None if part == "meta" else int(part)
        case _:
            return None


class EpochKeys:
    """The keys of one epoch of one release. A straggler of an old epoch touches only old keys."""

    __slots__ = ("accounts", "ahead", "claims", "meta", "parked", "pending", "people", "pools", "prefix")

    def __init__(self, release_id: UUID, epoch: int) -> None:
        self.meta = meta_key(release_id)
        self.prefix = f"ct:{{{release_id.hex}}}:{epoch}:"
        self.pools = self.prefix + "pools"
        self.claims = self.prefix + "claims"
        self.people = self.prefix + "people"
        self.accounts = self.prefix + "accounts"
        self.pending = self.prefix + "pending"
        self.parked = self.prefix + "parked"
        self.ahead = self.prefix + "ahead"

    def free_map(self, ordinal: int) -> str:
        """Return the key of a pool's free map: bit n is set while place n is free."""
        return f"{self.prefix}free:{ordinal}"

    def everything(self, pools: int) -> list[str]:
        """Return every key that this epoch can have, with that many pools."""
        return [
            self.pools,
            self.claims,
            self.people,
            self.accounts,
            self.pending,
            self.parked,
            self.ahead,
            *(self.free_map(ordinal) for ordinal in range(pools)),
        ]
