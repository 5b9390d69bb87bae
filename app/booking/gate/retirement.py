"""Takes out of Redis the states that nobody needs any more, and what dead rebuilds left behind.

Nothing is lost by it: all but pending claims is in PostgreSQL, and a state with pending claims stays. Whoever needs the
state of a long-closed release once more (a late cancellation, an audit, a look at what is left) has it made anew.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import Final, cast
from uuid import UUID

from app.booking.gate.keys import EVERY_GATE_KEY, LOADING_EXPIRY_SECONDS, EpochKeys, meta_key, read_key
from app.booking.gate.link import RETIRE, Argument, Links
from app.booking.gate.state import Release

# How long a state stays after its release closed, or after it was built: of a release that has long closed, at most one
# rebuild a day is caused by whoever still asks after it.
KEPT_MS: Final = 86_400_000
# Keys that Redis looks at in one call; it answers others in between.
_SCAN_COUNT: Final = 1_000


async def states_in_redis(links: Links) -> AsyncGenerator[set[UUID]]:
    """Yield every release that has a state in force on one server, some at a time; a few may come twice.

    On the way, keys of epochs that are not in force get an expiry, where they have none.
    """
    cursor: bytes | int = 0
    while True:
        async with links.lend() as link:
            (reply,) = await link.commands([["SCAN", cursor, "MATCH", EVERY_GATE_KEY, "COUNT", _SCAN_COUNT]])
        cursor, keys = cast("tuple[bytes, list[bytes]]", reply)
        releases: set[UUID] = set()
        of_epochs: dict[tuple[UUID, int], list[bytes]] = defaultdict(list)
        for key in keys:
            match read_key(key):
                case None:
                    pass
                case (release_id, None):
                    releases.add(release_id)
                case (release_id, int(epoch)):
                    of_epochs[release_id, epoch].append(key)
        await _let_go_of_what_is_not_in_force(of_epochs, links)
        yield releases
        if int(cursor) == 0:
            return


async def _let_go_of_what_is_not_in_force(of_epochs: dict[tuple[UUID, int], list[bytes]], links: Links) -> None:
    if not of_epochs:
        return
    async with links.lend() as link:
        in_force = await link.commands([["HGET", meta_key(release_id), "epoch"] for release_id, _ in of_epochs])
        for ((release_id, epoch), keys), current in zip(of_epochs.items(), in_force, strict=True):
            if current is None or int(cast("bytes", current)) != epoch:
                names = [meta_key(release_id), EpochKeys(release_id, epoch).pending, *(key.decode() for key in keys)]
                # By a script: meanwhile the epoch may have come into force.
                await link.run(RETIRE, names, [link.identity, epoch, "", LOADING_EXPIRY_SECONDS])


async def retire(release: Release, links: Links) -> bool:
    """Remove the state of a release that has closed. Return whether it is gone.

    It stays while claims are pending in it, and for some time after closing and building (`KEPT_MS`). That nothing
    else is going on in the release is the caller's to know.
    """
    keys = release.keys
    names = [keys.meta, *dict.fromkeys([keys.pending, *keys.everything(len(release.pool_ids))])]
    async with links.lend() as link:
        arguments: list[Argument] = [link.identity, release.epoch, KEPT_MS, LOADING_EXPIRY_SECONDS]
        return await link.run(RETIRE, names, arguments) in {b"O", b"E"}
