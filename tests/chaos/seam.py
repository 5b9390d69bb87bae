"""What a round changes inside the service's own processes: where one of them dies, and which guard is switched off.

A seam is opened from outside, by `seams/sitecustomize.py` on the path of the processes; no flag of the service leads
here. `CHAOS_SEAM` names the seams, with `+` between, `CHAOS_DIRECTORY` a directory in which the processes of a round
leave marks, so that only one of them dies.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

if TYPE_CHECKING:
    from uuid import UUID

    from app.booking.gate.ledger import Winner
    from app.booking.gate.link import Script
    from app.booking.gate.state import Release

SEAM: Final = "CHAOS_SEAM"
DIRECTORY: Final = "CHAOS_DIRECTORY"
# The file that a round makes when its crash points may be taken; it says how often they may be passed before.
ARMED: Final = "armed"
# By how much a process may believe to be ahead or behind.
CLOCK_SHIFT_SECONDS: Final = 3_600


def environment(seam: str, directory: Path) -> Mapping[str, str]:
    """Return what the service's processes are to be started with, so that they open this seam."""
    here = Path(__file__).parent
    return {
        SEAM: seam,
        DIRECTORY: str(directory),
        "PYTHONPATH": os.pathsep.join((str(here / "seams"), str(here.parents[1]))),
    }


def install() -> None:
    """Open the seams that the environment names, in this process. Raises `KeyError` for one that there is not."""
    for name in os.environ[SEAM].split("+"):
        SEAMS[name]()


def _is_first(mark: str) -> bool:
    """Tell whether no other process of the round has left this mark yet, and leave it."""
    try:
        descriptor = os.open(Path(os.environ[DIRECTORY], mark), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    return True


def died_at(point: str) -> str:
    """Return the mark of somebody who died at a crash point."""
    return f"died {point}"


def _dies_at(point: str) -> Callable[[], None]:
    """Return what ends this process as a crash does, if the round has said that it may, and nobody has died there."""

    passed = 0

    def die() -> None:
        nonlocal passed
        armed = Path(os.environ[DIRECTORY], ARMED)
        if not armed.exists():
            return
        passed += 1
        if passed >= int(armed.read_text()) and _is_first(died_at(point)):
            os.kill(os.getpid(), signal.SIGKILL)

    return die


def _before(owner: object, name: str, do: Callable[[], None]) -> None:
    """Have something done each time before a method or function is called."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        do()
        return original(*arguments, **named)

    setattr(owner, name, wrapped)


def _after(owner: object, name: str, do: Callable[[], None]) -> None:
    """Have something done each time when a coroutine function has returned."""
    original = cast("Callable[..., Awaitable[Any]]", getattr(owner, name))

    async def wrapped(*arguments: Any, **named: Any) -> Any:
        result = await original(*arguments, **named)
        do()
        return result

    setattr(owner, name, wrapped)


# Crash points. Each imports what it wraps only where it is wanted: these are the service's processes.


def _after_the_script() -> None:
    from app.booking.gate.admission import Admission

    _before(Admission, "_admitted", _dies_at("after_the_script"))


def _before_the_commit() -> None:
    from app.booking.gate.ledger import Ledger

    _before(Ledger, "_write", _dies_at("before_the_commit"))


def _after_the_commit() -> None:
    from app.booking.gate.ledger import Ledger

    _after(Ledger, "_write", _dies_at("after_the_commit"))


def _before_the_confirmation() -> None:
    from app.booking.gate.admission import Admission

    _before(Admission, "confirm", _dies_at("before_the_confirmation"))


def _while_rebuilding() -> None:
    from app.booking.gate.rebuild import _Loader

    _before(_Loader, "end", _dies_at("while_rebuilding"))


def _before_the_activation() -> None:
    from app.booking.gate.link import ACTIVATE, Link, Script

    original, die = Link.run, _dies_at("before_the_activation")

    async def run(self: Link, script: Script, *arguments: Any) -> bytes:
        if script is ACTIVATE:
            die()
        return await original(self, script, *arguments)

    Link.run = run  # pyright: ignore[reportAttributeAccessIssue] - the same but for its signature


def _while_handing_over() -> None:
    from app.booking.claims import queries

    _after(queries, "hand_over", _dies_at("while_handing_over"))


def _after_handing_over() -> None:
    from app.booking.gate.gate import Gate

    _before(Gate, "settle", _dies_at("after_handing_over"))


def _while_sweeping() -> None:
    """Between the tombstone and the release of its places."""
    from app.booking.gate.settlement import Settlement

    _before(Settlement, "release_claims", _dies_at("while_sweeping"))


# Clocks.


def _clocks_apart() -> None:
    """Put this process an hour ahead or behind, one of each; further ones are right."""
    shift = next((sign * CLOCK_SHIFT_SECONDS for mark, sign in (("ahead", 1), ("behind", -1)) if _is_first(mark)), 0)
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + shift
    time.time_ns = lambda: nanoseconds() + shift * 1_000_000_000


# Guards that are switched off, one for each invariant: what the checker must call red.


def _script_with(old: bytes, new: bytes, script: "Script | None" = None) -> None:
    from app.booking.gate.link import CLAIM

    script = script or CLAIM
    assert script.source.count(old) == 1, f"{script.name}.lua has {old!r} not once"
    script.source = script.source.replace(old, new)
    script.sha = sha1(script.source, usedforsecurity=False).hexdigest()


def _gives_places_twice() -> None:
    """The script leaves the bit of a place that it gives away."""
    _script_with(b"redis.call('SETBIT', free_key[ordinal], place, 0)", b"")


def _knows_no_limits() -> None:
    """The script lets everybody have as many places as they like."""
    asked = b"local function limit_hit(person, last_person, account)\n"
    _script_with(asked, asked + b"    do return end\n")


def _says_yes_before_the_commit() -> None:
    """A winner hears "yes", and the commit is a second later."""
    from app.booking.gate.ledger import Ledger, Verdict, Winner

    original = Ledger.commit

    def commit(self: Ledger, winner: Winner) -> "asyncio.Future[Verdict]":
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, original, self, winner)
        said: asyncio.Future[Verdict] = loop.create_future()
        said.set_result(Verdict.COMMITTED)
        return said

    Ledger.commit = commit


def _commits_without_flushing() -> None:
    """PostgreSQL says that something is committed before it is on the disk."""
    import asyncpg

    original = asyncpg.create_pool

    def create_pool(*arguments: Any, server_settings: dict[str, str], **named: Any) -> Any:
        lax = server_settings | {"synchronous_commit": "off"}
        return original(*arguments, server_settings=lax, **named)

    asyncpg.create_pool = create_pool


def _says_no_to_winners() -> None:
    """Every tenth winner is told that everything is sold out."""
    # The desk first: it must know the class itself.
    from app.booking.gate import desk, gate
    from app.booking.gate.refusals import SOLD_OUT

    original = desk.Decided
    count = 0

    def decided(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        return original(*arguments, **named) if count % 10 else SOLD_OUT

    gate.Decided = decided  # pyright: ignore[reportAttributeAccessIssue] - stands in for the class


def _lets_newcomers_pass() -> None:
    """Neither is a place kept for those who wait, nor does the script let them go first."""
    from app.booking.gate.link import SETTLE

    _script_with(b"pool.open == 1 and pool.waiting == 0 and", b"pool.open == 1 and")
    _script_with(b"if p.waiting > 0 then", b"if false then", script=SETTLE)


def _forgets_claim_ids() -> None:
    """The script judges a claim that it knows as if it were new."""
    _script_with(b"    if known then\n", b"    if false then\n")


def _never_sweeps() -> None:
    """Nobody looks after claims whose worker died."""
    from app.booking.gate.gate import Gate

    async def sweep(self: Gate, release_id: object) -> None:
        del self, release_id

    Gate.sweep = sweep


def _forgets_some_winners() -> None:
    """Every eighth winner is never written, and nobody knows what became of it until a sweep has looked."""
    from app.booking.gate.ledger import Ledger, Verdict, Winner

    original = Ledger.commit

    def commit(self: Ledger, winner: Winner) -> "asyncio.Future[Verdict]":
        # The same one whenever it is asked for again.
        if winner.record.claim_id.int % 8:
            return original(self, winner)
        unknown: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        unknown.set_result(Verdict.UNKNOWN)
        return unknown

    Ledger.commit = commit


def _calls_every_no_final() -> None:
    """The script says "sold out" while claims are on their way."""
    asked = b"local function is_final(choice, last_choice, waitlist)\n"
    _script_with(asked, asked + b"    do return true end\n")


def _rebuilds_slowly() -> None:
    """A rebuild takes its time."""
    from app.booking.gate.rebuild import _Loader

    original = _Loader.end

    async def end(self: _Loader) -> None:
        # Not as long as PostgreSQL allows a transaction to be idle.
        await asyncio.sleep(3.5)
        await original(self)

    _Loader.end = end


def _commits_late() -> None:
    """What was admitted waits before it is written: long enough for a rebuild to come in between."""
    from app.booking.gate.ledger import Ledger

    original = Ledger._write

    async def write(self: Ledger, winners: "Sequence[Winner]") -> "dict[UUID, str]":
        await asyncio.sleep(0.5)
        return await original(self, winners)

    Ledger._write = write


def _splits_families() -> None:
    """Of a family only the first gets written."""
    import msgspec

    from app.booking.gate import ledger

    original = ledger.commit_arguments

    def commit_arguments(release: "Release", winners: "Sequence[Winner]") -> tuple[object, ...]:
        alone = [msgspec.structs.replace(winner.record, entries=winner.record.entries[:1]) for winner in winners]
        return original(
            release, [winner._replace(record=record) for winner, record in zip(winners, alone, strict=True)]
        )

    ledger.commit_arguments = commit_arguments


def _fails_at_questions() -> None:
    """Whoever asks what became of a claim meets a defect."""
    from app.booking.gate.gate import Gate

    async def known_claim(self: Gate, release_id: "UUID", claim_id: "UUID", account: bytes) -> NoReturn:
        del self, release_id, claim_id, account
        raise AssertionError

    Gate.known_claim = known_claim


SEAMS: Final[Mapping[str, Callable[[], None]]] = {
    seam.__name__.removeprefix("_"): seam
    for seam in (
        _after_the_script,
        _before_the_commit,
        _after_the_commit,
        _before_the_confirmation,
        _while_rebuilding,
        _before_the_activation,
        _while_handing_over,
        _after_handing_over,
        _while_sweeping,
        _clocks_apart,
        _gives_places_twice,
        _knows_no_limits,
        _says_yes_before_the_commit,
        _commits_without_flushing,
        _says_no_to_winners,
        _lets_newcomers_pass,
        _forgets_claim_ids,
        _never_sweeps,
        _forgets_some_winners,
        _calls_every_no_final,
        _rebuilds_slowly,
        _commits_late,
        _splits_families,
        _fails_at_questions,
    )
}
