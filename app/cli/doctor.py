"""Looks at everything a working service needs, and says for each thing that is wrong which command mends it."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from redis.exceptions import RedisError
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.cli import surroundings
from app.cli.consistency import compare_at_rest
from app.cli.database import max_connections, revisions, with_engine
from app.cli.refusal import EXIT_WRONG, Refusal, out
from app.cli.upkeep import all_in_use, servers
from app.core.redis import connect_redis
from app.core.settings import Settings

_REDIS_VERSION_MIN: Final = 7
_POSTGRES_VERSION_MIN: Final = 150_000
_SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")


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
        settings = surroundings.enter(data_dir)
    except Refusal as refusal:
        yield Finding(is_well=False, sentence=str(refusal))
        return
    yield Finding(is_well=True, sentence="Every setting is given and within its limits.")
    redis = asyncio.run(_look_at_redis(settings))
    yield redis
    yield from _look_at_the_kernel(settings)
    try:
        findings = with_engine(settings, lambda engine: _look_at_postgres(settings, engine))
        yield from findings
        if redis.is_well and all(finding.is_well for finding in findings):
            yield from with_engine(settings, lambda engine: _look_at_releases(settings, engine))
    except Refusal as refusal:
        yield Finding(is_well=False, sentence=str(refusal))


async def _look_at_redis(settings: Settings) -> Finding:
    client = connect_redis(settings)
    try:
        info = cast("dict[str, object]", await client.info())  # pyright: ignore[reportUnknownMemberType] - redis-py leaves **kwargs untyped
    except (RedisError, OSError) as error:
        return Finding(
            is_well=False,
            sentence=f"Redis does not answer ({error}).",
            mend="start it, or correct CLOCKTOWER_REDIS_URL",
        )
    finally:
        await client.aclose()
    version = str(info.get("valkey_version") or info.get("redis_version"))
    name = f"{str(info.get('server_name') or 'redis').capitalize()} {version}"
    if int(version.partition(".")[0]) < _REDIS_VERSION_MIN:
        return Finding(is_well=False, sentence=f"{name} is too old.", mend="run Redis 7 or Valkey 8, or newer")
    policy = info.get("maxmemory_policy")
    if info.get("maxmemory") and policy != "noeviction":
        return Finding(
            is_well=False,
            sentence=f"{name} throws keys away when its memory is full ({policy}), a gate's state among them.",
            mend="set maxmemory-policy to noeviction",
        )
    return Finding(is_well=True, sentence=f"{name} answers.")


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
        fsync = (await connection.exec_driver_sql("SHOW fsync")).scalar_one()
        allowed = await max_connections(connection)
    found, newest = await revisions(engine)
    each = settings.database_pool_size + settings.gate_connection_limit
    return [
        Finding(
            is_well=True,
            sentence=f"PostgreSQL {written} answers; its {allowed} connections are enough for "
            f"{allowed // each} processes.",
        )
        if version >= _POSTGRES_VERSION_MIN
        else Finding(is_well=False, sentence=f"PostgreSQL {written} is too old.", mend="run PostgreSQL 15 or newer"),
        Finding(is_well=True, sentence="PostgreSQL flushes each commit to the disk.")
        if fsync == "on"
        else Finding(
            is_well=False, sentence="PostgreSQL may lose what it has committed (fsync is off).", mend="set fsync = on"
        ),
        Finding(is_well=True, sentence=f"The database stands at the newest migration ({newest}).")
        if found == newest
        else Finding(
            is_well=False,
            sentence=f"The database stands at migration {found}, and the newest is {newest}.",
            mend="clocktower migrate",
        ),
    ]


async def _look_at_releases(settings: Settings, engine: AsyncEngine) -> list[Finding]:
    findings: list[Finding] = []
    async with servers(settings, engine) as at:
        for release_id in await all_in_use(at):
            comparison = await compare_at_rest(engine, at.gate, release_id)
            if comparison is None:
                continue
            if comparison.gate is None:
                findings.append(
                    Finding(
                        is_well=False,
                        sentence=f"The gate of {comparison.title} ({release_id}) cannot be built.",
                        mend=f"clocktower reconcile {release_id}",
                    )
                )
            elif comparison.agrees:
                held, places = comparison.gate.held, comparison.gate.held + comparison.gate.free
                sentence = f"{comparison.title}: gate and PostgreSQL agree, {held} of {places} places held."
                findings.append(Finding(is_well=True, sentence=sentence))
            else:
                findings.append(
                    Finding(
                        is_well=False,
                        sentence=f"{comparison.title} ({release_id}): the gate says {comparison.gate}, PostgreSQL "
                        f"{comparison.database}.",
                        mend=f"clocktower reconcile {release_id}",
                    )
                )
    if not findings:
        findings.append(Finding(is_well=True, sentence="No published release is in use."))
    return findings
