"""Makes the demonstration town on the servers that a command works with."""

from pathlib import Path
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts.policy import Role
from app.accounts.service import grant_role_by_openid
from app.cli import surroundings
from app.cli.database import with_engine
from app.cli.upkeep import servers
from app.core.db import transaction
from app.programme.demonstration import SeedReport, seed_demonstration

SEED: Final = 2026


def make_town(data_dir: Path, *, seed: int = SEED, operator_openid: str | None = None) -> SeedReport:
    """Make what is missing of the town, and an operator in it where one is named. Raises `Refusal`."""
    settings = surroundings.enter(data_dir)

    async def work(engine: AsyncEngine) -> SeedReport:
        async with servers(settings, engine) as at, transaction(engine) as db:
            added = await seed_demonstration(db, seed=seed, now=at.clock.now())
            if operator_openid is not None:
                await grant_role_by_openid(
                    db,
                    openid=operator_openid,
                    role=Role.OPERATOR,
                    scope_kind=None,
                    scope_id=None,
                    now=at.clock.now(),
                )
            return added

    return with_engine(settings, work)
