"""What a request gets of PostgreSQL: one transaction, committed before the answer leaves, or reads one by one.

FastAPI runs the exit of a plain `yield` dependency after the response has been sent: a commit that fails there
has already been answered with 200. `scope="function"` runs it before, and that is what `Tx` uses.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.core.db import transaction


async def _tx(request: Request) -> AsyncIterator[AsyncSession]:
    async with transaction(request.app.state.engine) as db:
        yield db


async def _read(request: Request) -> AsyncIterator[AsyncSession]:
    engine: AsyncEngine = request.app.state.engine
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with AsyncSession(autocommit, expire_on_commit=False, autoflush=False) as db:
        yield db


# One transaction around the request, committed before the response is sent.
Tx = Annotated[AsyncSession, Depends(_tx, scope="function")]
# One statement at a time, each its own transaction: for reads.
Read = Annotated[AsyncSession, Depends(_read, scope="function")]
