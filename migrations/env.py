"""Runs migrations: one at a time in the whole fleet, and never long behind somebody else's lock.

The address comes from `CLOCKTOWER_DATABASE_URL`, or from `Config.attributes["connection"]` where a caller has a
connection already.
"""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.core.db import sqlalchemy_url
from app.tables import metadata

# A migration that waits for a lock makes every later query of that table wait behind it.
LOCK_TIMEOUT_MS = 5_000
STATEMENT_TIMEOUT_MS = 300_000
# Two servers that start together migrate one after the other. The number is arbitrary and ours.
ADVISORY_LOCK_KEY = 0x434C_4F43_4B54


def run(connection: Connection) -> None:
    """Run the migrations that are asked for, on this connection, in one transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        connection.execute(text(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK_KEY})
        connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
        context.run_migrations()


async def run_with_own_connection() -> None:
    """Connect by the environment and run the migrations."""
    engine = create_async_engine(sqlalchemy_url(os.environ["CLOCKTOWER_DATABASE_URL"]), poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
            await connection.commit()
    finally:
        await engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    asyncio.run(run_with_own_connection())
else:
    run(given)
