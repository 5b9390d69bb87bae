"""What the worker forgets for accounts: tokens and invitations that nobody can use any more."""

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import queries

# Rows of one transaction, so that a long backlog never holds locks for long; the worker calls again while it is full.
BATCH_ROWS: Final = 1_000
# So long a late guest hears that the invitation has expired, instead of that there is none.
_INVITATION_MEMORY: Final = timedelta(days=30)


async def forget_expired_tokens(db: AsyncSession, now: datetime) -> int:
    """Delete refresh tokens that have expired, used and revoked ones included, up to a batch; return how many."""
    return await queries.forget_refresh_tokens(db, expired_before=now, limit=BATCH_ROWS)


async def forget_expired_invitations(db: AsyncSession, now: datetime) -> int:
    """Delete invitations that expired 30 days ago, accepted ones included, up to a batch; return how many."""
    return await queries.forget_invitations(db, expired_before=now - _INVITATION_MEMORY, limit=BATCH_ROWS)
