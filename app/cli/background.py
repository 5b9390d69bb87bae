"""`clocktower worker`: waits a bounded time for its servers, then works until it is told to stop."""

import asyncio
import signal
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from app.cli.metrics import own_numbers
from app.cli.reach import ask_postgres, ask_redis, away
from app.cli.refusal import Refusal, say
from app.core.db import create_engine
from app.core.outages import ENGINE_ERRORS
from app.core.settings import Settings
from app.core.tasks import end_task
from app.worker import run_worker

_TRY_EVERY_SECONDS: Final = 1.0


async def work(settings: Settings, *, wait_seconds: float, announce_fd: int | None = None) -> None:
    """Work until SIGTERM or Ctrl-C. `announce_fd` gets a line once the worker works.

    Raises `Refusal` when a server was not reached within `wait_seconds` of the start. One that goes away later is
    waited for as long as it takes.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reaching = asyncio.create_task(_reach_servers(settings, wait_seconds))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({reaching, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        await end_task(reaching)
        say("Stopped before it worked.")
        return
    stopping.cancel()
    await reaching
    with own_numbers(settings):
        await run_worker(settings, stop, announce_fd=announce_fd)


async def _reach_servers(settings: Settings, wait_seconds: float) -> None:
    """Return once both servers answer. What is away is said once, and again when it changes. Raises `Refusal`."""
    deadline = asyncio.get_running_loop().time() + wait_seconds
    said = ""
    engine = create_engine(settings)
    try:
        while sentence := await _what_is_away(settings, engine):
            left_seconds = deadline - asyncio.get_running_loop().time()
            if left_seconds <= 0:
                raise Refusal(f"Given up after {wait_seconds:g} s: {sentence}")
            if sentence != said:
                say(f"{sentence} Trying for {left_seconds:.0f} s more.")
                said = sentence
            await asyncio.sleep(min(_TRY_EVERY_SECONDS, left_seconds))
    finally:
        await engine.dispose()


async def _what_is_away(settings: Settings, engine: AsyncEngine) -> str:
    """Return a sentence about each server that does not answer; an empty text when both do."""
    sentences: list[str] = []
    for ask in (ask_postgres(engine), ask_redis(settings)):
        try:
            await ask
        except ENGINE_ERRORS as error:
            sentences.append(away(settings, error))
    return " ".join(sentences)
