"""Finishes what a crash left half done. Runs in the background worker; safe to run anywhere, any number of times.

Three things can be left over: a claim that was admitted and never confirmed; a place that was parked for a waiter; a
change in PostgreSQL of which the gate has not heard. None of them is ever decided by a deadline: the deadline only says
when to ask PostgreSQL, and the first writer of a claim id decides.
"""

from typing import Final, cast

import asyncpg
from redis.exceptions import ResponseError

from app.booking.gate.admission import parse_answers
from app.booking.gate.errors import NotInForce, contradiction_in
from app.booking.gate.ledger import void_claims
from app.booking.gate.link import CLAIM, Argument, Links, ms_of_time
from app.booking.gate.records import PARKED
from app.booking.gate.settlement import Settlement
from app.booking.gate.state import Release
from app.core import metrics
from app.core.ids import id_of
from app.core.settings import Settings

# Claims swept, places handed out and changes told at one go. What is more comes next time.
BATCH_LIMIT: Final = 500


async def sweep_release(
    release: Release, links: Links, database: asyncpg.Pool, settlement: Settlement, settings: Settings
) -> None:
    """Sweep one release once.

    Raises `NotInForce` or `Contradiction` when the state cannot be used, and the drivers' errors: what they interrupt
    is found again by the next sweep.
    """
    await settlement.check_epoch()
    await _settle_overdue(release, links, database, settlement, settings)
    await _hand_out_parked(release, links, settlement)
    behind = await settlement.behind(BATCH_LIMIT)
    if behind:
        await settlement.settle(behind)
        metrics.SWEPT.labels("news_told").inc(len(behind))


async def _settle_overdue(
    release: Release, links: Links, database: asyncpg.Pool, settlement: Settlement, settings: Settings
) -> None:
    async with links.lend() as link:
        (time,) = await link.commands([["TIME"]])
        (overdue,) = await link.commands(
            [["ZRANGE", release.keys.pending, "-inf", ms_of_time(time), "BYSCORE", "LIMIT", 0, BATCH_LIMIT]]
        )
    claim_ids = [id_of(claim_id) for claim_id in cast("list[bytes]", overdue)]
    if not claim_ids:
        return
    timeout_seconds = settings.commit_timeout_ms / 1000
    outcomes = await void_claims(database, release, claim_ids, timeout_seconds=timeout_seconds)
    if "stale" in outcomes.values():
        reason = "the epoch is over"
        raise NotInForce(reason)
    # Only now, with the tombstones committed, may their places go to others.
    void = [claim_id.bytes for claim_id, outcome in outcomes.items() if outcome == "void"]
    if void:
        await settlement.release_claims(void)
        metrics.SWEPT.labels("claims_released").inc(len(void))
    booked = [claim_id.bytes for claim_id, outcome in outcomes.items() if outcome == "known"]
    if booked:
        await _confirm(release, links, booked)
        metrics.SWEPT.labels("claims_confirmed").inc(len(booked))


async def _confirm(release: Release, links: Links, claim_ids: list[bytes]) -> None:
    keys = release.keys
    names = [keys.meta, keys.pools, keys.claims, keys.people, keys.accounts, keys.pending]
    async with links.lend() as link:
        arguments: list[Argument] = [link.identity, release.epoch, 0, b"", b"".join(claim_ids), b""]
        try:
            parse_answers(await link.run(CLAIM, names, arguments), 0)
        except ResponseError as error:
            raise contradiction_in(error) or error from error


async def _hand_out_parked(release: Release, links: Links, settlement: Settlement) -> None:
    async with links.lend() as link:
        (parked,) = await link.commands([["HKEYS", release.keys.parked]])
    places = [cast("tuple[int, int]", PARKED.unpack(key)) for key in cast("list[bytes]", parked)[:BATCH_LIMIT]]
    if not places:
        return
    handed = await settlement.hand_over(places)
    if handed:
        await settlement.settle(handed)
        metrics.SWEPT.labels("places_handed_over").inc(len(handed))
    await settlement.free_unwanted(places)
