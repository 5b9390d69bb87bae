"""One whole rehearsal: an operator opens a release, a crowd rushes it, the audit is read, a verdict is given."""

import asyncio
import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from loadtest import wire
from loadtest.crowd import Crowd, CrowdPlan, gather
from loadtest.http1 import BadAddressError, TooFewFilesError
from loadtest.operator import Operator
from loadtest.plan import LOOKS_FROM_SECONDS
from loadtest.prepare import CannotRunError
from loadtest.progress import Phase, ProgressSink
from loadtest.verdict import Verdict, judge

# Passes are one of the three requests a parent needs before the opening; the first two tell the pace.
_PASSES_PACE: Final = 0.6
_MARGIN_SECONDS: Final = 3.0
_CONNECTS_PER_SECOND: Final = 1500.0
# The gate confirms what it holds with its next script call or its next sweep; rest comes within this.
_REST_SECONDS_MAX: Final = 30.0
_AUDIT_EVERY_SECONDS: Final = 0.5
PARENTS_MAX: Final = 50_000


@dataclass(frozen=True, slots=True)
class RehearsalOptions:
    """What to rehearse.

    With `operator_code`, a WeChat code of an account that holds the role `operator`, a release is made for the
    rehearsal, unless `release_id` names one; without it `release_id` must be given, and nothing is audited.
    The opening comes `seconds_before` seconds after the parents have signed in, or later if their passes take longer.
    `workers` is written into the verdict, nothing else.
    """

    base_url: str
    parents: int
    seed: int
    seconds_before: float = 10.0
    operator_code: str | None = None
    release_id: str | None = None
    workers: int | None = None
    refill_seconds: float = 15.0


async def rehearse(options: RehearsalOptions, *, progress: ProgressSink) -> Verdict:
    """Rehearse once. Raises `CannotRunError`, with a sentence, where it could not take place."""
    if not 1 <= options.parents <= PARENTS_MAX:
        raise CannotRunError(f"The crowd has {options.parents} parents; it may have 1 to {PARENTS_MAX}.")
    if options.operator_code is None and options.release_id is None:
        raise CannotRunError("Say which release to rehearse, or give the code of an operator who can make one.")
    plan = CrowdPlan(options.base_url, options.parents, options.seed, options.release_id or "", options.refill_seconds)
    with _saying_why():
        async with gather(plan, progress) as crowd:
            return await _rehearse(options, crowd)


async def _rehearse(options: RehearsalOptions, crowd: Crowd) -> Verdict:
    operator: Operator | None = None
    if options.operator_code is not None:
        # First of all: who has no role, or no town, or no such release, should learn so before thousands sign in.
        operator = await Operator.sign_in(crowd.network, options.operator_code)
        await operator.station_ids()
    release_id = options.release_id
    if release_id is not None:
        await crowd.require_release(release_id)
    await crowd.sign_in()
    if operator is not None and release_id is None:
        release_id = await operator.open_release(
            await operator.server_now() + timedelta(seconds=_seconds_needed(options, crowd)),
            f"演练 {crowd.run_name}",
        )
    assert release_id is not None  # noqa: S101 - `rehearse` refused the case without either
    await crowd.fetch_passes(release_id)
    before = None if operator is None else await operator.audit(release_id)
    result = await crowd.rush(release_id)
    crowd.enter(Phase.CHECKING)
    audit = None if operator is None else await _audit_at_rest(operator, release_id)
    verdict = judge(result, audit, held_before=0 if before is None else before.held, workers=options.workers)
    crowd.enter(Phase.DONE)
    return verdict


def _seconds_needed(options: RehearsalOptions, crowd: Crowd) -> float:
    passes_seconds = crowd.preparing_seconds * _PASSES_PACE
    connecting_seconds = LOOKS_FROM_SECONDS + options.parents / _CONNECTS_PER_SECOND
    return max(options.seconds_before, passes_seconds + connecting_seconds + _MARGIN_SECONDS)


async def _audit_at_rest(operator: Operator, release_id: str) -> wire.Audit:
    """Read the audit until nothing is pending, or until rest is overdue; then it is judged as it stands."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _REST_SECONDS_MAX
    while True:
        audit = await operator.audit(release_id)
        at_rest = audit.consistent and (audit.gate is None or audit.gate.pending == 0)
        if at_rest or loop.time() > deadline:
            return audit
        await asyncio.sleep(_AUDIT_EVERY_SECONDS)


@contextlib.contextmanager
def _saying_why() -> Generator[None]:
    try:
        yield
    except (TooFewFilesError, BadAddressError) as error:
        raise CannotRunError(str(error)) from error
