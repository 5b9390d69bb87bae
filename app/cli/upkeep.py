"""What commands by hand work with, and the granting of roles."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts.policy import SCOPES, Role, ScopeKind
from app.accounts.service import grant_role_by_openid
from app.booking.gate.gate import Gate
from app.booking.releases.queries import RELEASES_PAGE, releases_in_use
from app.cli import surroundings
from app.cli.database import with_engine
from app.cli.refusal import Refusal, say
from app.core.clock import Clock
from app.core.db import transaction
from app.core.problems import Problem
from app.core.redis import connect_redis
from app.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Servers:
    """What a command that looks at the gate works with."""

    engine: AsyncEngine
    gate: Gate
    clock: Clock


@asynccontextmanager
async def servers(settings: Settings, engine: AsyncEngine) -> AsyncGenerator[Servers]:
    """Open the gate beside the database's engine, on Redis's time."""
    redis = connect_redis(settings)
    clock = Clock()
    try:
        await clock.calibrate(redis.time)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - **kwargs untyped
        gate = await Gate.open(settings, clock)
        try:
            yield Servers(engine, gate, clock)
        finally:
            await gate.close()
    finally:
        await redis.aclose()


def role_named(name: str) -> Role:
    """Return a role that can be granted. Raises `Refusal`, which lists them."""
    grantable = [role.value for role, scopes in SCOPES.items() if scopes]
    if name not in grantable:
        raise Refusal(f"There is no role {name} to grant; the roles are {', '.join(grantable)}.")
    return Role(name)


def scope_named(name: str | None, role: Role) -> tuple[ScopeKind | None, UUID | None]:
    """Return a scope written as `station:ID`. Raises `Refusal`, which says what the role allows."""
    allowed = [kind.value if kind else None for kind in SCOPES[role]]
    forms = [f"--scope {kind}:ID" if kind else "no --scope" for kind in allowed]
    kind, _, number = (name or "").partition(":")
    try:
        scope_id = UUID(number) if name else None
    except ValueError:
        scope_id, kind = None, "?"
    if (kind or None) not in allowed:
        raise Refusal(f"The role {role} is granted with {' or '.join(forms)}.")
    return (ScopeKind(kind) if kind else None), scope_id


# As the column of the accounts has it; WeChat's own have 28.
_OPENID_CHARACTERS_MAX: Final = 128


def grant(data_dir: Path, openid: str, role_name: str, scope: str | None) -> None:
    """Grant a role to whoever signs in with this open id, before or after the first sign-in. Raises `Refusal`."""
    if not 1 <= len(openid) <= _OPENID_CHARACTERS_MAX or not openid.isprintable() or " " in openid:
        raise Refusal(f"An open id has 1 to {_OPENID_CHARACTERS_MAX} visible characters and no blanks.")
    role = role_named(role_name)
    scope_kind, scope_id = scope_named(scope, role)
    settings = surroundings.enter(data_dir)

    async def work(engine: AsyncEngine) -> None:
        async with transaction(engine) as db:
            # PostgreSQL's own time: no rule compares when a role was granted, and Redis need not run for it.
            now: datetime = (await db.execute(select(func.now()))).scalar_one()
            await grant_role_by_openid(db, openid=openid, role=role, scope_kind=scope_kind, scope_id=scope_id, now=now)

    try:
        with_engine(settings, work)
    except Problem as problem:
        raise Refusal(f"The role cannot be granted: {problem.detail_en or problem.title_en}.") from problem
    say(f"{openid} holds the role {role}{f' for {scope}' if scope else ' everywhere'}.")


async def all_in_use(at: Servers) -> list[UUID]:
    """Return every release that claims can still change."""
    found: list[UUID] = []
    page: list[UUID] | None = None
    while page is None or len(page) == RELEASES_PAGE:
        async with at.engine.connect() as connection:
            page = await releases_in_use(connection, now=at.clock.now(), after=found[-1] if found else None)
        found += page
    return found
