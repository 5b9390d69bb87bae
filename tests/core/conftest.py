"""The application with a router that exists only to be refused, to fail and to be sent again."""

from collections.abc import AsyncGenerator

import httpx2
import pytest
from fastapi import FastAPI

from tests.core import probe


@pytest.fixture
async def probed(api: FastAPI) -> AsyncGenerator[httpx2.AsyncClient]:
    api.include_router(probe.router)
    async with api.router.lifespan_context(api):
        transport = httpx2.ASGITransport(app=api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://clocktower.test") as client:
            yield client
