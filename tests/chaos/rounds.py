"""Plays one round: the crowd, the fault, the quiet after it, and the verdict."""

import asyncio
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from loadtest.http1 import Network
from tests.booking.gate.agreement import epoch_in_force, seen_in_redis
from tests.booking.gate.builders import MadeRelease
from tests.chaos.checker import Violation, judge, story_of
from tests.chaos.crowd import Crowd, Probes, unanswered
from tests.chaos.engines import Template
from tests.chaos.evidence import Evidence, Pool, Recovery, Strain, read_truth
from tests.chaos.faults import Fault, Strike
from tests.chaos.stand import (
    ACCOUNT_LIMIT,
    PENDING_SECONDS,
    PERSON_LIMIT,
    Stand,
    left_behind,
    standing,
)
from tests.chaos.watch import Watch
from tests.log_watch import secrets_in

# When the burst comes, how long after its beginning the fault strikes, and how long the crowd stays when it is over.
_BURST_SECONDS: Final = (0.4, 0.8)
_STRIKE_SECONDS: Final = (0.0, 0.25)
# Whatever a sweep has to find comes in this time.
_AFTER_SECONDS: Final = PENDING_SECONDS + 1.0
_SETTLE_SECONDS_MAX: Final = 15.0
_LOOK_EVERY_SECONDS: Final = 0.1
_STORIES_MAX: Final = 3
# Of what the server said, in a round that went wrong.
_LAST_WORDS_LENGTH: Final = 4_000
# On a machine that does nothing else they take some ms.
_SLOW_CHECK_SECONDS: Final = 0.5


@dataclass(slots=True)
class Outcome:
    """What came of a round. `broken` names what did not hold, with a sentence and the stories that show it."""

    number: int
    fault: str
    operations: int = 0
    unknowns: int = 0
    promised: int = 0
    missed: bool = False
    recovery: Recovery = field(default_factory=lambda: Recovery(0.0, None, None))
    strain: Strain | None = None
    broken: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    stories: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    trouble: str = ""
    last_words: str = ""
    seconds: float = 0.0

    @property
    def is_well(self) -> bool:
        """Tell whether every promise held."""
        return not self.broken and not self.trouble

    def as_document(self) -> Mapping[str, object]:
        """Return it for the JSON report."""
        return {
            "round": self.number,
            "fault": self.fault,
            "operations": self.operations,
            "unknowns": self.unknowns,
            "promised": self.promised,
            "missed": self.missed,
            "unavailable_during_s": round(self.recovery.unavailable_during_s, 3),
            "unavailable_after_s": _rounded(self.recovery.unavailable_after_s),
            "settled_s": _rounded(self.recovery.settled_s),
            "strain": None if self.strain is None else asdict(self.strain),
            "violations": self.broken,
            "stories": self.stories,
            "trouble": self.trouble or None,
            "last_words": self.last_words or None,
            "seconds": round(self.seconds, 2),
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


# Does what a round is about, and notes what came of it.
Act = Callable[[Stand, Fault, random.Random, Outcome], Awaitable[None]]


async def play(
    number: int,
    fault: Fault,
    *,
    seed: str,
    template: Template,
    directory: Path,
    seam: str = "",
    statements: Sequence[str] = (),
    made: MadeRelease | None = None,
    act: Act | None = None,
) -> Outcome:
    """Play one round of a fault in a directory of its own. `seam` and `statements` switch a guard off.

    `made` is the release of the template, if it has one; `act` is what happens instead of an opening that is judged.
    """
    outcome = Outcome(number, fault.name)
    began_at = time.perf_counter()
    rng = random.Random(f"{seed}/{number}")
    at = directory / f"round-{number}"
    try:
        async with standing(
            at,
            template,
            seam=seam or fault.seam,
            on_a_small_disk=fault.on_a_small_disk,
            more_settings=fault.settings,
            made=made,
        ) as stand:
            async with stand.database() as database:
                for statement in statements:
                    await database.execute(statement)
            try:
                await (act or _open_and_judge)(stand, fault, rng, outcome)
            finally:
                said = stand.server.log_path.read_text("utf-8", errors="replace")
                outcome.last_words = said[-_LAST_WORDS_LENGTH:]
                _note_secrets(outcome, said)
    except Exception as error:  # noqa: BLE001 - a round that could not be played is told; the others go on
        outcome.trouble = "".join(traceback.format_exception(error))
    left = left_behind(at)
    if left:
        outcome.trouble = f"{outcome.trouble} processes were left: {[process.pid for process in left]}".strip()
        for process in left:
            process.kill()
    if outcome.is_well:
        outcome.last_words = ""
    outcome.seconds = time.perf_counter() - began_at
    return outcome


def _note(outcome: Outcome, evidence: Evidence) -> None:
    outcome.operations = len(evidence.history.operations)
    outcome.unknowns = sum(operation.status == 0 for operation in evidence.history.operations)
    outcome.promised = sum(story.yes is not None for story in evidence.stories.values())
    outcome.recovery, outcome.strain = evidence.recovery, evidence.strain
    found = judge(evidence)
    for name, violations in found.items():
        outcome.broken[name] = [violation.sentence for violation in violations]
        for claim_id in _shown(violations):
            outcome.stories[claim_id] = story_of(evidence, claim_id)


def _note_secrets(outcome: Outcome, said: str) -> None:
    """Note secrets and personal facts that stand in what the server said."""
    if kinds := sorted(set(secrets_in(said))):
        outcome.broken["no_secret_is_logged"] = [f"a {kind} stands in the log" for kind in kinds]


def _shown(violations: Sequence[Violation]) -> list[str]:
    return [claim_id for violation in violations[:_STORIES_MAX] for claim_id in violation.claims]


async def _open_and_judge(stand: Stand, fault: Fault, rng: random.Random, outcome: Outcome) -> None:
    _note(outcome, await _rush(stand, fault, rng, outcome))


async def _rush(stand: Stand, fault: Fault, rng: random.Random, outcome: Outcome) -> Evidence:
    await stand.ready()
    strike, watch = Strike(), Watch()
    # Its own: the crowd draws as often as the machine lets it.
    chance = random.Random(rng.getrandbits(64))
    async with Network(stand.address) as network:
        crowd = Crowd(network, stand.made, stand.keys, rng, gives_up_share=fault.gives_up_share)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch.keep(stand))
            burst_s = rng.uniform(*_BURST_SECONDS)
            strike_s = burst_s + rng.uniform(*_STRIKE_SECONDS)
            group.create_task(crowd.rush(burst_s))
            group.create_task(crowd.probe())
            try:
                await asyncio.sleep(strike_s - crowd.now())
                watch.begins()
                await fault.play(stand, chance, strike)
                await asyncio.sleep(_AFTER_SECONDS)
                await _served_again(crowd, strike)
            finally:
                crowd.is_over.set()
                watching.cancel()
        outcome.missed = strike.missed
        await stand.ready()
        await crowd.settle(_SETTLE_SECONDS_MAX)
        await crowd.take_the_rest(_SETTLE_SECONDS_MAX)
        settled_s = await _at_rest(stand)
        return await _evidence(stand, crowd, strike, settled_s, watch)


async def _served_again(crowd: Crowd, strike: Strike) -> None:
    """Wait until somebody has got a place since the fault was over, within bounds."""
    since_s = crowd.now() - (time.perf_counter() - strike.ended_at)
    deadline = crowd.now() + _SETTLE_SECONDS_MAX
    while crowd.now() < deadline:
        if crowd.probes.yes_at_s and max(crowd.probes.yes_at_s) > since_s:
            return
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


async def _at_rest(stand: Stand) -> float | None:
    """Wait until nothing is pending or parked and PostgreSQL has told the gate everything. Returns how long it took."""
    began_at = time.perf_counter()
    async with _valkey_in_use(stand) as valkey, stand.database() as database:
        while time.perf_counter() - began_at < PENDING_SECONDS + _SETTLE_SECONDS_MAX:
            behind = await database.fetchval(
                "SELECT count(*) FROM claim WHERE release_id = $1 AND gate_revision < revision", stand.made.release_id
            )
            if not behind and await epoch_in_force(valkey, stand.made) is not None:
                seen = await seen_in_redis(valkey, stand.made)
                if not seen.pending and not seen.parked:
                    return time.perf_counter() - began_at
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
    return None


def _valkey_in_use(stand: Stand) -> AbstractAsyncContextManager[Redis]:
    return stand.valkey(second=stand.to_valkey.target == stand.plant.second_valkey_socket)


async def _evidence(stand: Stand, crowd: Crowd, strike: Strike, settled_s: float | None, watch: Watch) -> Evidence:
    made = stand.made
    async with stand.database() as database, _valkey_in_use(stand) as valkey:
        truth = await read_truth(database, made, began_at_epoch_seconds=crowd.began_at_epoch_seconds)
        gate = await seen_in_redis(valkey, made) if await epoch_in_force(valkey, made) is not None else None
        rows = await database.fetch(
            "SELECT id, ordinal, extract(epoch FROM lower(during))::float8 AS starts_at,"
            " extract(epoch FROM upper(during))::float8 AS ends_at FROM pool WHERE release_id = $1 ORDER BY ordinal",
            made.release_id,
        )
    pools = [
        Pool(
            str(row["id"]),
            row["ordinal"],
            frozenset(range(1, capacity + 1)),
            row["starts_at"],
            row["ends_at"],
            # All but the probes' own.
            fills=row["ordinal"] < len(made.pools) - 1,
        )
        for row, capacity in zip(rows, made.capacities, strict=True)
    ]
    return Evidence(
        pools=pools,
        person_limit=PERSON_LIMIT,
        account_limit=ACCOUNT_LIMIT,
        history=crowd.history,
        truth=truth,
        gate=gate,
        recovery=recovery_of(crowd.probes, crowd.now(), strike, settled_s),
        unanswered=unanswered(crowd.history),
        hasty=crowd.hasty,
        strain=strain_of(crowd.probes, crowd.now(), strike, watch),
    )


def strain_of(probes: Probes, now_s: float, strike: Strike, watch: Watch) -> Strain | None:
    """Work out what a storm did to the service; None where the fault was none."""
    storm = strike.storm
    if storm is None:
        return None
    offset = now_s - time.perf_counter()
    checks = [check for check in watch.checks if check.asked_at >= strike.began_at]
    retries = [retry for retry in probes.retries if retry.started_s >= strike.began_at + offset]
    bad = [check for check in checks if not check.is_well or check.seconds > _SLOW_CHECK_SECONDS]
    back_s = max((check.asked_at + check.seconds - strike.ended_at for check in bad), default=0.0)
    return Strain(
        sent=storm.sent,
        connections=storm.connections,
        answers=storm.answers,
        without_retry_after=storm.without_retry_after,
        memory_before_mib=watch.memory_before_mib,
        memory_mib=watch.memory_mib,
        checks=len(checks),
        failed_checks=sum(not check.is_well for check in checks),
        slowest_check_s=max((check.seconds for check in checks), default=0.0),
        back_s=max(back_s, 0.0),
        retries=len(retries),
        failed_retries=sum(not retry.is_yes for retry in retries),
    )


def recovery_of(probes: Probes, now_s: float, strike: Strike, settled_s: float | None) -> Recovery:
    """Work out for how long nobody got a place: while the fault lasted, and after it."""
    offset = now_s - time.perf_counter()
    began_s, ended_s = strike.began_at + offset, strike.ended_at + offset
    yes = sorted(probes.yes_at_s)
    during = after = 0.0
    # The last is when nobody was to get one any more: that was a wait as well.
    for one, other in pairwise([0.0, *yes, max(probes.until_s, *yes, 0.0)]):
        during = max(during, min(other, ended_s) - max(one, began_s))
        if other > ended_s:
            after = max(after, other - max(one, ended_s))
    came_back = any(at_s > ended_s for at_s in yes)
    return Recovery(max(during, 0.0), after if came_back else None, settled_s)
