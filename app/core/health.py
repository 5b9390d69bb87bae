"""What a countdown, a load balancer and an operator ask before anything else: the time, and whether we are there."""

import asyncio
from datetime import datetime
from typing import Annotated, Final

from fastapi import Depends, Request
from pydantic import Field
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.clock import Clock
from app.core.openapi import problems
from app.core.problems import Unavailable, jittered_ms
from app.core.schemas import ResponseModel
from app.core.web.failures import UNAVAILABLE_RETRY_MS
from app.core.web.routing import ApiRouter

# A probe that waits longer tells a load balancer nothing that it would still wait for.
PROBE_TIMEOUT_SECONDS: Final = 1.5

router = ApiRouter(tags=["service"])


class TimeNow(ResponseModel):
    """The server's time, by which releases open."""

    now: Annotated[datetime, Field(examples=["2026-07-01T09:00:00.000+08:00"])]
    now_ms: Annotated[int, Field(description="Unix milliseconds.", examples=[1782867600000])]


class Health(ResponseModel):
    """It works."""

    status: Annotated[str, Field(examples=["ok"])] = "ok"


def _clock(request: Request) -> Clock:
    clock: Clock = request.app.state.clock
    return clock


@router.get("/v1/time", summary="The server's time")
async def read_time(clock: Annotated[Clock, Depends(_clock)]) -> TimeNow:
    """Return the time that decides when a release opens. Ask it a few times and keep the quickest answer."""
    return TimeNow(now=clock.now(), now_ms=clock.now_ms())


@router.get("/health/live", summary="Is the process alive?")
async def read_live() -> Health:
    """Answer as long as the process can answer at all; it asks nobody."""
    return Health()


@router.get("/health/ready", summary="Can it serve?", responses=problems(Unavailable))
async def read_ready(request: Request) -> Health:
    """Answer 200 when PostgreSQL and Redis both answer, else 503 with their names in `down`."""
    engine: AsyncEngine = request.app.state.engine
    redis: Redis = request.app.state.redis
    postgres_answers, redis_answers = await asyncio.gather(_postgres_answers(engine), _redis_answers(redis))
    down = [name for name, answers in (("postgresql", postgres_answers), ("redis", redis_answers)) if not answers]
    if down:
        names = ", ".join(down)
        raise Unavailable(
            f"No answer from: {names}.",
            f"无响应：{names}。",
            retry_after_ms=jittered_ms(UNAVAILABLE_RETRY_MS),
            extra={"down": down},
        )
    return Health()


async def _postgres_answers(engine: AsyncEngine) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS), engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError):
        return False
    return True


async def _redis_answers(redis: Redis) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            await redis.ping()  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues] - redis-py types sync and async as one
    except (RedisError, OSError):
        return False
    return True
