"""Makes the demonstration town on the servers that a command works with."""

from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts.policy import Role
from app.accounts.service import grant_role_by_openid
from app.cli import surroundings
from app.cli.database import with_engine
from app.cli.upkeep import servers
from app.core.db import transaction
from app.programme.seed import seed_demonstration

SEED = 2026


def prepare_town(data_dir: Path, *, operator_openid: str, seed: int = SEED) -> None:
    """Make the town, unless it stands, and an operator in it. Raises `Refusal`."""
    settings = surroundings.enter(data_dir)

    async def work(engine: AsyncEngine) -> None:
        async with servers(settings, engine) as at, transaction(engine) as db:
            await seed_demonstration(db, seed=seed, now=at.clock.now())
            await grant_role_by_openid(
                db,
                openid=operator_openid,
                role=Role.OPERATOR,
                scope_kind=None,
                scope_id=None,
                now=at.clock.now(),
            )

    with_engine(settings, work)
