"""What a request's function may ask for by its type: the present instant and the settings."""

from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request

from app.core.clock import Clock
from app.core.settings import Settings


async def _now(request: Request) -> datetime:
    clock: Clock = request.app.state.clock
    return clock.now()


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


# The instant at which the request arrived, aware, in UTC, by the one clock; the same for all of its rules.
Now = Annotated[datetime, Depends(_now)]
# The settings of this process.
Configured = Annotated[Settings, Depends(_settings)]
