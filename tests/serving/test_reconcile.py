"""`clocktower reconcile` beside a server that runs: what differs is said, and mended, but not in a dry run."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from app.booking.gate.desk import Desk
from app.booking.gate.gate import Gate
from app.booking.gate.keys import EpochKeys
from app.booking.gate.passes import PassSigner
from app.core.clock import Clock
from app.core.ids import new_id
from app.core.settings import Settings
from tests.booking.gate.agreement import assert_agrees, command
from tests.booking.gate.builders import MadeRelease, Phone, Worker, epoch_of, make_release
from tests.booking.gate.steps import admit
from tests.conftest import make_settings
from tests.serving.servers import REFUSED, Server, clocktower, json_file

NOBODY = "00000000-0000-7000-8000-000000000000"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Inside:
    """The engines of the server, and a gate of the test's own on them."""

    db: "asyncpg.Connection[asyncpg.Record]"
    redis: Redis
    worker: Worker
    signer: PassSigner


def settings_of(server: Server) -> Settings:
    card = json_file(server.data_dir / "serve.json")
    settings = make_settings(
        str(card["CLOCKTOWER_DATABASE_URL"]), str(card["CLOCKTOWER_REDIS_URL"]), str(card["CLOCKTOWER_WECHAT_BASE_URL"])
    )
    pass_key = SecretStr(str(card["CLOCKTOWER_PASS_KEY"]))
    return settings.model_copy(update={"pass_key": pass_key})


def inside(
    server: Server, work: Callable[[Inside], Coroutine[Any, Any, _T]], *, is_overdue_at_once: bool = False
) -> _T:
    """Do something on the engines of the server; what is admitted may be overdue for the next sweep."""

    async def run() -> _T:
        settings = settings_of(server)
        if is_overdue_at_once:
            settings = settings.model_copy(update={"pending_deadline_ms": 0})
        signer = PassSigner(settings.pass_key.get_secret_value())
        db = await asyncpg.connect(settings.database_url.get_secret_value())
        gate = await Gate.open(settings, Clock())
        try:
            async with Redis.from_url(settings.redis_url.get_secret_value()) as redis:  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
                return await work(Inside(db, redis, Worker(gate, Desk(gate, signer)), signer))
        finally:
            await gate.close()
            await db.close()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """Run a server that sweeps often, so that a difference has stayed for long enough after a second."""
    running = Server.start(tmp_path_factory.mktemp("reconciled") / "data", env={"CLOCKTOWER_SWEEP_INTERVAL_MS": "100"})
    yield running
    running.end()


@pytest.fixture
def nobody_sweeps(server: Server) -> Generator[None]:
    """Stop the background worker where it is, for as long as the test takes."""
    worker = next(child for child in server.children() if "worker" in child.cmdline())
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()


@pytest.fixture
def made(server: Server) -> tuple[MadeRelease, UUID]:
    """Publish a release in which one place of two is booked."""

    async def make(at: Inside) -> tuple[MadeRelease, UUID]:
        release, claim_id = await make_release(at.db, capacities=(2,)), new_id()
        said = await at.worker.ask(Phone.with_pass(at.signer, release).claim(claim_id=claim_id))
        assert said.word == "confirmed"
        await assert_agrees(at.db, at.redis, release)
        return release, claim_id

    return inside(server, make)


def said_of(server: Server, *arguments: str, name: str = "reconcile") -> tuple[int, str]:
    done = clocktower(name, *arguments, "--data-dir", server.data_dir)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def epoch(server: Server, release: MadeRelease) -> int:
    return inside(server, lambda at: epoch_of(at.db, release))


def test_a_release_that_agrees_is_left_as_it_is(server: Server, made: tuple[MadeRelease, UUID]) -> None:
    release, _ = made
    for arguments in (("--dry-run",), ("--dry-run", "--all"), (), (str(release.release_id),)):
        status, said = said_of(server, *arguments)
        assert (status, f"release ({release.release_id}): the gate and PostgreSQL agree." in said) == (0, True), said
    assert epoch(server, release) == 1
    status, said = said_of(server, "--rebuild", str(release.release_id))
    assert (status, "made anew by hand, in epoch 2; they agree now" in said) == (0, True), said
    assert epoch(server, release) == 2


def test_a_contradiction_is_said_in_a_dry_run_and_mended_without(
    server: Server, made: tuple[MadeRelease, UUID]
) -> None:
    release, claim_id = made
    keys = EpochKeys(release.release_id, 1)
    inside(server, lambda at: command(at.redis, "HDEL", keys.claims, claim_id.bytes))
    named = f"Claim {claim_id}: PostgreSQL holds it (confirmed, place 1 in “pool”"
    status, said = said_of(server, "--dry-run")
    assert (status, named in said, "1 contradiction." in said) == (1, True, True), said
    again = f"clocktower reconcile {release.release_id} --data-dir {server.data_dir}"
    assert f"To mend: {again}" in said
    status, said = said_of(server, name="doctor")
    assert (status, named in said, f"→ {again}" in said) == (1, True, True), said
    assert epoch(server, release) == 1
    status, said = said_of(server, str(release.release_id))
    assert (status, "made anew from PostgreSQL; they agree now" in said) == (0, True), said
    assert said_of(server, "--dry-run")[0] == 0
    assert epoch(server, release) == 2
    inside(server, lambda at: assert_agrees(at.db, at.redis, release))


@pytest.mark.usefixtures("nobody_sweeps")
def test_an_orphaned_claim_is_said_by_the_doctor_and_swept_without_a_rebuild(
    server: Server, made: tuple[MadeRelease, UUID]
) -> None:
    release, _ = made

    async def orphan(at: Inside) -> UUID:
        return (await admit(at.worker, Phone.with_pass(at.signer, release).claim())).record.claim_id

    claim_id = inside(server, orphan, is_overdue_at_once=True)
    named = f"Claim {claim_id}: it was taken (confirmed, place 2 in “pool”"
    for name, arguments in (("doctor", ()), ("reconcile", ("--dry-run",))):
        status, said = said_of(server, *arguments, name=name)
        assert (status, "1 thing left unfinished" in said, named in said) == (1, True, True), said
    status, said = said_of(server)
    assert (status, "swept; they agree now" in said) == (0, True), said
    assert epoch(server, release) == 1
    inside(server, lambda at: assert_agrees(at.db, at.redis, release))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((NOBODY,), f"There is no published release {NOBODY}"),
        (("--dry-run", "--rebuild"), "--dry-run changes nothing and --rebuild does"),
        (("--all", NOBODY), "Name releases, or say --all."),
    ],
)
def test_what_cannot_be_done_is_refused_with_status_2(
    server: Server, arguments: tuple[str, ...], sentence: str
) -> None:
    status, said = said_of(server, *arguments)
    assert (status, sentence in said) == (REFUSED, True), said
