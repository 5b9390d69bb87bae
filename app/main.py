"""Puts the service together: the gate in front, FastAPI behind it, and what both stand on. No rules here."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_standalone_docs import StandaloneDocs
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from app.api import include_routers
from app.booking.claims.erasure import giving_up_places
from app.booking.gate.asgi import GateInFront
from app.booking.gate.desk import Desk
from app.booking.gate.gate import Gate
from app.booking.gate.passes import PassSigner
from app.booking.gate.protocol import DESK_STATE
from app.booking.openapi import gate_document
from app.core.clock import Clock, RedisTime
from app.core.db import create_engine
from app.core.logs import configure_logs
from app.core.openapi import API_VERSION, DESCRIPTION, DOCS_URL, OPENAPI_URL, SUMMARY, TAGS, TITLE, describe
from app.core.problems import Problem
from app.core.redis import connect_redis
from app.core.settings import Settings, load_settings
from app.core.tasks import end_task
from app.core.web.answers import problem_response
from app.core.web.edge import Edge, allowed_methods
from app.core.web.failures import problem_for
from app.core.web.limits import Limiter, RateLimits
from app.wechat.client import WeChatClient

# The rate limiter takes 16 of them at most; sign-in, the clock and probes share the rest.
REDIS_CONNECTIONS: Final = 32


def create_app(settings: Settings) -> ASGIApp:
    """Return the whole service as one ASGI application."""
    return with_gate_in_front(create_api(settings), settings)


def create_app_from_environment() -> ASGIApp:
    """Return the service as the environment describes it, with logs configured (uvicorn's `factory`)."""
    settings = load_settings()
    configure_logs(settings)
    return create_app(settings)


def with_gate_in_front(api: FastAPI, settings: Settings) -> ASGIApp:
    """Return the application that looks at every request first; what is not for the gate it passes on to `api`."""

    def desk() -> Desk | None:
        # There is none before the start-up is done, and none after the shutdown.
        return getattr(api.state, "desk", None)

    return GateInFront(api, desk, body_limit_bytes=settings.body_limit_bytes)


def create_api(settings: Settings) -> FastAPI:
    """Return FastAPI with every router; what the requests need is opened by its lifespan, on `api.state`."""

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncGenerator[dict[str, Desk]]:
        async with AsyncExitStack() as stack:
            await _open(api, settings, stack)
            # For the protocol, which carries the gate's requests past this application (see `gate.protocol`).
            yield {DESK_STATE: api.state.desk}

    api = FastAPI(
        title=TITLE,
        summary=SUMMARY,
        description=DESCRIPTION,
        version=API_VERSION,
        openapi_url=OPENAPI_URL,
        docs_url=DOCS_URL,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        openapi_tags=[dict(tag) for tag in TAGS],
        lifespan=lifespan,
        redirect_slashes=False,
        strict_content_type=True,
    )
    include_routers(api)
    StandaloneDocs(api, with_google_fonts=False)
    describe(api, gate_document())
    for kind in (Problem, RequestValidationError, HTTPException):
        api.add_exception_handler(kind, _answer)
    # The last one added stands outermost.
    api.add_middleware(RateLimits, settings=settings)
    api.add_middleware(Edge, body_limit_bytes=settings.body_limit_bytes)
    return api


async def _open(api: FastAPI, settings: Settings, stack: AsyncExitStack) -> None:
    """Open what requests need, in the order of need; the stack closes it in the reverse order."""
    engine = create_engine(settings)
    stack.push_async_callback(engine.dispose)
    redis = connect_redis(settings, connections=REDIS_CONNECTIONS)
    stack.push_async_callback(redis.aclose)
    clock = Clock()
    # Before the first request: no rule may read this machine's own time.
    redis_time = cast("RedisTime", redis.time)  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
    await clock.calibrate(redis_time)
    await stack.enter_async_context(_calibrating(clock, redis_time))
    api.state.settings = settings
    api.state.engine = engine
    api.state.redis = redis
    api.state.clock = clock
    api.state.limiter = Limiter(redis)
    api.state.wechat = await stack.enter_async_context(WeChatClient.from_settings(settings, redis))
    gate = await Gate.open(settings, clock)
    stack.push_async_callback(gate.close)
    api.state.gate = gate
    api.state.when_erased = giving_up_places(gate)
    api.state.pass_signer = PassSigner(settings.pass_key.get_secret_value())
    api.state.desk = Desk(gate, api.state.pass_signer)
    stack.callback(delattr, api.state, "desk")


@asynccontextmanager
async def _calibrating(clock: Clock, redis_time: RedisTime) -> AsyncGenerator[None]:
    task = asyncio.create_task(clock.keep_calibrated(redis_time), name="clock")
    try:
        yield
    finally:
        await end_task(task)


async def _answer(request: Request, error: Exception) -> Response:
    problem = problem_for(error)
    if isinstance(error, HTTPException) and error.headers and "allow" in {name.lower() for name in error.headers}:
        problem.headers["Allow"] = allowed_methods(request.app.routes, request.url.path)
    return problem_response(problem, request.scope)
