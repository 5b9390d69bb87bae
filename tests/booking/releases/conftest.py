"""A seeded town, its staff and its families."""

import itertools
from collections.abc import Awaitable, Callable

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts.policy import Role
from app.core.clock import Clock
from app.core.db import transaction
from app.programme.demonstration import demonstration_station_id, seed_demonstration
from tests.booking.releases.town import Family, Headers
from tests.conftest import SignIn

NewFamily = Callable[[str], Awaitable[Family]]

_numbers = itertools.count(1)


@pytest.fixture
async def town(engine: AsyncEngine) -> None:
    """Seed the town; the module's later tests find it there."""
    async with transaction(engine) as db:
        await seed_demonstration(db, seed=1, now=Clock().now())


@pytest.fixture
async def staff(town: None, sign_in: SignIn) -> Headers:  # noqa: ARG001 - its stations must be there
    """Sign in somebody who works at the first station."""
    return await sign_in("staff-1", roles=[Role.STAFF], station_id=demonstration_station_id(1))


@pytest.fixture
async def foreign_staff(town: None, sign_in: SignIn) -> Headers:  # noqa: ARG001 - its stations must be there
    """Sign in somebody who works at the second station."""
    return await sign_in("staff-2", roles=[Role.STAFF], station_id=demonstration_station_id(2))


@pytest.fixture
async def operator(town: None, sign_in: SignIn) -> Headers:  # noqa: ARG001 - its stations must be there
    return await sign_in("operator", roles=[Role.OPERATOR])


@pytest.fixture
async def resident(town: None, sign_in: SignIn) -> Headers:  # noqa: ARG001 - its stations must be there
    return await sign_in("resident")


@pytest.fixture
def new_family(client: httpx2.AsyncClient, sign_in: SignIn) -> NewFamily:
    """Make another family with a pass for a release."""

    async def make(release_id: str) -> Family:
        return await Family.of(client, await sign_in(f"parent-{next(_numbers)}"), release_id)

    return make
