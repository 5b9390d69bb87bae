"""What a worker knows of a release without asking: its epoch, its pools, its hours. True until a script says no."""

import struct
from collections.abc import Sequence
from typing import Any, Final, Self

import msgspec

from app.booking.gate.keys import EpochKeys
from app.core.ids import id_of


class PoolSetup(msgspec.Struct, frozen=True, array_like=True):
    """One pool of a release, as far as a claim needs it."""

    pool_id: bytes
    capacity: int


class ReleaseSetup(msgspec.Struct, frozen=True, array_like=True):
    """How a release is set up in one epoch. Stored by the rebuild beside the epoch itself. Times in Unix ms."""

    release_id: bytes
    epoch: int
    opens_ms: int
    closes_ms: int
    person_limit: int
    account_limit: int
    pools: tuple[PoolSetup, ...]

    def pack(self) -> bytes:
        """Return the stored form."""
        return _encoder.encode(self)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Read the stored form."""
        return msgspec.msgpack.decode(packed, type=cls)


_encoder: Final = msgspec.msgpack.Encoder()


def pack_ordinals(ordinals: Sequence[int]) -> bytes:
    """Return pool ordinals as the scripts read them: two bytes each, the low one first."""
    return struct.pack(f"<{len(ordinals)}H", *ordinals)


class Release:
    """A release in one epoch, with what is derived from its setup.

    `name` is its id as phones write it, and so are the keys of `marks`: for each pool its bit in a set of pools (bit n
    is ordinal n), and its ordinal as the scripts read it.
    """

    __slots__ = ("epoch", "free_maps", "identity", "keys", "marks", "name", "pool_ids", "release_id", "setup")

    def __init__(self, setup: ReleaseSetup, identity: str) -> None:
        self.setup = setup
        self.identity = identity
        self.release_id = id_of(setup.release_id)
        self.epoch = setup.epoch
        self.keys = EpochKeys(self.release_id, setup.epoch)
        self.pool_ids = tuple(id_of(pool.pool_id) for pool in setup.pools)
        self.marks = {
            str(pool_id): (1 << ordinal, pack_ordinals([ordinal])) for ordinal, pool_id in enumerate(self.pool_ids)
        }
        self.name = str(self.release_id)
        self.free_maps = tuple(self.keys.free_map(ordinal) for ordinal in range(len(setup.pools)))

    @classmethod
    def from_meta(cls, fields: dict[bytes, Any]) -> Self:
        """Read it from the fields of the meta key."""
        return cls(ReleaseSetup.unpack(fields[b"setup"]), fields[b"identity"].decode())
