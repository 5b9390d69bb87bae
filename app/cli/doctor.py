"""Looks at everything a working service needs, and says for each thing that is wrong which command mends it."""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast
from uuid import UUID

import asyncpg
from redis.asyncio import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import RedisError
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.booking.gate.gate import LINKS
from app.booking.gate.topology import Topology
from app.cli import surroundings
from app.cli.database import max_connections, revisions, with_engine
from app.cli.reconcile import counted
from app.cli.refusal import EXIT_WRONG, Refusal, out
from app.cli.upkeep import Servers, all_in_use, servers
from app.core.redis import connect_redis, connections_to, redis_address
from app.core.redis_address import Kind
from app.core.settings import Settings
from app.worker import LAST_ROUND_KEY

_REDIS_VERSION_MIN: Final = 7
# The versions before it count on from Redis 7.2, and are called 7.2 too.
_VALKEY_VERSION_MIN: Final = 8
_POSTGRES_VERSION_MIN: Final = 150_000
# A worker ends a round every second or so; while a server is away it pauses for ten at most.
_ROUND_AGE_SECONDS_MAX: Final = 30
# For the embedded engines, which no variable names.
_START_EMBEDDED: Final = "`clocktower serve` starts it again within seconds where it has died; else restart serve"
_FULL_COVERAGE: Final = "cluster-require-full-coverage"
_SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")

# What breaks the promise that a yes is durable before it is spoken, where it is off.
_MUST_BE_ON: Final = {
    "fsync": "PostgreSQL may lose what it has committed",
    "full_page_writes": "PostgreSQL may find torn pages after a crash",
    "synchronous_commit": "By default PostgreSQL calls committed what a crash may still take back",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `mend` says what to do where it is wrong, or better otherwise."""

    is_well: bool
    sentence: str
    mend: str = ""
    is_advice: bool = False


def doctor(data_dir: Path) -> None:
    """Print every finding. Raises `Refusal` with status 1 when something is wrong."""
    findings: list[Finding] = []
    for finding in _look(data_dir):
        findings.append(finding)
        mark, style = ("ok   ", "green") if finding.is_well else ("WRONG", "bold red")
        if finding.is_advice:
            mark, style = "note ", "yellow"
        out.print(Text(mark, style), Text(finding.sentence), soft_wrap=True)
        if finding.mend:
            out.print(Text("      → " + finding.mend), soft_wrap=True)
    wrong = sum(not finding.is_well for finding in findings)
    if wrong:
        raise Refusal(f"{wrong} of {len(findings)} findings are wrong.", exit_status=EXIT_WRONG)


def _look(data_dir: Path) -> Iterator[Finding]:
    try:
        # Afterwards the addresses of the embedded engines stand in the environment.
        start = _START_EMBEDDED if surroundings.is_embedded() else "start it, or correct {variable}"
        settings = surroundings.enter(data_dir)
    except Refusal as refusal:
        yield Finding(is_well=False, sentence=str(refusal))
        return
    yield Finding(is_well=True, sentence="Every setting is given and within its limits.")
    redis = asyncio.run(_look_at_redis(settings, start.format(variable=surroundings.REDIS_URL)))
    yield from redis
    yield from _look_at_the_kernel(settings)
    try:
        findings = with_engine(settings, lambda engine: _look_at_postgres(settings, engine))
        yield from findings
        if all(finding.is_well for finding in [*redis, *findings]):
            yield from with_engine(settings, lambda engine: _look_at_releases(settings, engine, data_dir))
    except Refusal as refusal:
        yield Finding(is_well=False, sentence=str(refusal), mend=start.format(variable=surroundings.DATABASE_URL))


async def _look_at_redis(settings: Settings, start: str) -> list[Finding]:
    """Look at Redis, or at every primary of the cluster. `start` says how to bring it back where it is away."""
    client = connect_redis(settings)
    try:
        if redis_address(settings).kind is Kind.CLUSTER:
            findings = await _look_at_the_cluster(settings)
        else:
            info = await client.info()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - redis-py leaves **kwargs untyped
            findings = [*_look_at_this_redis(cast("dict[str, object]", info))]
        now_seconds, _ = await client.time()  # pyright: ignore[reportUnknownMemberType] - as above
        last_round = cast("bytes | None", await client.get(LAST_ROUND_KEY))  # pyright: ignore[reportUnknownMemberType] - as above
    except (RedisError, OSError) as error:
        return [Finding(is_well=False, sentence=f"Redis does not answer ({error}).", mend=start)]
    finally:
        await client.aclose()
    return [*findings, _look_at_the_worker(now_seconds, last_round)]


async def _look_at_the_cluster(settings: Settings) -> list[Finding]:
    """Look at every primary, and whether each slot has one. Raises redis's errors."""
    slots = await Topology(settings).look()
    findings: list[Finding] = []
    if homeless := REDIS_CLUSTER_HASH_SLOTS - slots.count:
        findings.append(
            Finding(
                is_well=False,
                sentence=f"{homeless:,} of {REDIS_CLUSTER_HASH_SLOTS:,} slots of the cluster have no primary: releases "
                "in them are refused.",
                mend="start the node that had them, or promote its replica: CLUSTER FAILOVER TAKEOVER",
            )
        )
    for node in sorted(slots.nodes):
        client = Redis(connection_pool=connections_to(redis_address(settings).url_of(node), settings))
        try:
            info = cast("dict[str, object]", await client.info())  # pyright: ignore[reportUnknownMemberType] - redis-py leaves **kwargs untyped
            refuses_all = await client.config_get(_FULL_COVERAGE)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - as above
        except (RedisError, OSError) as error:
            findings.append(
                Finding(
                    is_well=False,
                    sentence=f"The primary at {node} does not answer ({error}): its releases are refused.",
                    mend="start it, or promote its replica: CLUSTER FAILOVER TAKEOVER",
                )
            )
            continue
        finally:
            await client.aclose()
        findings += _look_at_this_redis(info, f" at {node}")
        if "yes" in cast("Mapping[str, str]", refuses_all).values():
            findings.append(
                Finding(
                    is_well=True,
                    is_advice=True,
                    sentence=f"The primary at {node} refuses every release while another one is away "
                    f"({_FULL_COVERAGE}).",
                    mend=f"CONFIG SET {_FULL_COVERAGE} no, and the same in its configuration file",
                )
            )
    return findings


def _look_at_this_redis(info: Mapping[str, object], where: str = "") -> Iterator[Finding]:
    is_valkey = "valkey_version" in info or info.get("server_name") == "valkey"
    version = str(info.get("valkey_version") or info.get("redis_version"))
    name = f"{'Valkey' if is_valkey else 'Redis'} {version}{where}"
    if int(version.partition(".")[0]) < (_VALKEY_VERSION_MIN if is_valkey else _REDIS_VERSION_MIN):
        yield Finding(is_well=False, sentence=f"{name} is too old.", mend="run Redis 7 or Valkey 8, or newer")
        return
    if info.get("role") != "master":
        yield Finding(
            is_well=False,
            sentence=f"{name} is a replica of {info.get('master_host')}:{info.get('master_port')}: it takes no claims.",
            mend="name the primary in CLOCKTOWER_REDIS_URL, or promote this one: REPLICAOF NO ONE",
        )
    policy = info.get("maxmemory_policy")
    if policy != "noeviction":
        evicts = bool(info.get("maxmemory"))
        yield Finding(
            is_well=not evicts,
            is_advice=not evicts,
            sentence=f"{name} throws keys away when its memory is full ({policy}), a gate's state among them"
            + ("." if evicts else "; it has no limit yet (maxmemory 0)."),
            mend="CONFIG SET maxmemory-policy noeviction, and the same in its configuration file",
        )
    yield Finding(is_well=True, sentence=f"{name} answers.")


def _look_at_the_worker(now_seconds: int, last_round: bytes | None) -> Finding:
    """Say whether somebody sweeps: without it, orphaned claims keep their places and nobody hears of hand-overs."""
    if last_round is None:
        return Finding(
            is_well=False,
            sentence="No background worker has ended a round since Redis was started or emptied.",
            mend="clocktower worker (`clocktower serve` runs one by itself: its log says why it does not)",
        )
    age_seconds = max(now_seconds - int(last_round) // 1_000, 0)
    if age_seconds > _ROUND_AGE_SECONDS_MAX:
        return Finding(
            is_well=False,
            sentence=f"The background worker ended its last round {age_seconds} s ago: it does not run, or is stuck.",
            mend="clocktower worker, or look into its log",
        )
    return Finding(is_well=True, sentence=f"A background worker ended a round {age_seconds} s ago.")


def _look_at_the_kernel(settings: Settings) -> Iterator[Finding]:
    if sys.platform != "linux" or not _SOMAXCONN.exists():
        return
    allowed = int(_SOMAXCONN.read_text())
    if allowed < settings.listen_backlog:
        yield Finding(
            is_well=True,
            is_advice=True,
            sentence=f"The kernel lets {allowed} connections wait to be accepted, and {settings.listen_backlog} are "
            "asked for (CLOCKTOWER_LISTEN_BACKLOG).",
            mend=f"for large crowds: sysctl -w net.core.somaxconn={settings.listen_backlog}",
        )


async def _look_at_postgres(settings: Settings, engine: AsyncEngine) -> list[Finding]:
    async with engine.connect() as connection:
        version = int((await connection.exec_driver_sql("SHOW server_version_num")).scalar_one())
        written = (await connection.exec_driver_sql("SHOW server_version")).scalar_one()
        is_standby = (await connection.exec_driver_sql("SELECT pg_is_in_recovery()")).scalar_one()
        allowed = await max_connections(connection)
    if version < _POSTGRES_VERSION_MIN:
        return [Finding(is_well=False, sentence=f"PostgreSQL {written} is too old.", mend="run PostgreSQL 15 or newer")]
    switches = await _switches(settings)
    found, newest = await revisions(engine)
    each = settings.database_pool_size + settings.gate_connection_limit
    findings = [
        Finding(
            is_well=True,
            sentence=f"PostgreSQL {written} answers; its {allowed} connections are enough for "
            f"{allowed // each} processes.",
        )
    ]
    if is_standby:
        findings.append(
            Finding(
                is_well=False,
                sentence="PostgreSQL is a standby, where nothing can be written.",
                mend="name the primary in CLOCKTOWER_DATABASE_URL, or promote this one: SELECT pg_promote()",
            )
        )
    off = [name for name, value in switches.items() if value == "off"]
    findings += [
        Finding(is_well=False, sentence=f"{_MUST_BE_ON[name]} ({name} is off).", mend=_switch_on(name)) for name in off
    ]
    if not off:
        findings.append(Finding(is_well=True, sentence="PostgreSQL flushes each commit to the disk."))
    findings.append(
        Finding(is_well=True, sentence=f"The database stands at the newest migration ({newest}).")
        if found == newest
        else Finding(
            is_well=False,
            sentence=f"The database stands at migration {found}, and the newest is {newest}.",
            mend="clocktower migrate",
        )
    )
    return findings


async def _switches(settings: Settings) -> dict[str, str]:
    """Return what is on by default: the service's own connections ask for some of it, which a pooler may drop."""
    plain = await asyncpg.connect(settings.database_url.get_secret_value())
    try:
        return {name: await plain.fetchval("SELECT current_setting($1)", name) for name in _MUST_BE_ON}
    finally:
        await plain.close()


def _switch_on(name: str) -> str:
    return (
        f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf(); and take it out of the server's command line, of its "
        "roles and its databases, if it stands there"
    )


async def _look_at_releases(settings: Settings, engine: AsyncEngine, data_dir: Path) -> list[Finding]:
    async with servers(settings, engine) as at:
        chosen = await all_in_use(at)
        # Each that differs is watched for some seconds. Of more at once, some would wait too long for one of the gate's
        # links.
        at_once = asyncio.Semaphore(LINKS)

        async def look(release_id: UUID) -> Finding:
            async with at_once:
                return await _look_at_release(at, release_id, data_dir)

        findings = await asyncio.gather(*map(look, chosen))
    return [*findings] or [Finding(is_well=True, sentence="No published release is in use.")]


async def _look_at_release(at: Servers, release_id: UUID, data_dir: Path) -> Finding:
    comparison = await at.gate.compare(release_id)
    if comparison is None:
        return Finding(is_well=True, sentence=f"Release {release_id} was taken back meanwhile.")
    title = comparison.title
    if not comparison.agrees:
        first, *others = comparison.differences
        more = f" ({len(others)} more)" if others else ""
        return Finding(
            is_well=False,
            sentence=f"{title} ({release_id}): {counted(comparison.differences)}. {first.sentence}{more}",
            mend=surroundings.again(f"reconcile {release_id}", data_dir),
        )
    if comparison.gate_epoch is None:
        return Finding(is_well=True, sentence=f"{title}: the gate has no state yet; whoever asks first has it made.")
    held, places = sum(pool.held for pool in comparison.pools), sum(pool.places for pool in comparison.pools)
    pending = sum(pool.gate_pending or 0 for pool in comparison.pools)
    on_the_way = f", {pending} on their way" if pending else ""
    return Finding(
        is_well=True,
        sentence=f"{title}: gate and PostgreSQL agree, {held} of {places} places held{on_the_way}.",
    )
