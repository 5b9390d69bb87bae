"""How a peer that is written in Python is started, and how it serves: one uvicorn worker on uvloop and httptools."""

import os
import sys
from pathlib import Path
from typing import Final

import msgspec
import uvicorn
from starlette.types import ASGIApp

from app.core.settings import Settings
from loadtest.bench.peers import Command, Surroundings

# How a peer's process learns what surrounds it: the fields of `Surroundings` as JSON.
VARIABLE: Final = "PEER_SURROUNDINGS"


def python_command(module: str, surroundings: Surroundings) -> Command:
    """Return how to start a module of this package with what it finds there."""
    return Command((sys.executable, "-m", module), surroundings_variable(surroundings))


def surroundings_variable(surroundings: Surroundings) -> dict[str, str]:
    """Return the environment variable that tells a server what surrounds it."""
    return {VARIABLE: msgspec.json.encode(surroundings, enc_hook=str).decode()}


def own_surroundings() -> Surroundings:
    """Return what this process was told."""
    return msgspec.json.decode(os.environ[VARIABLE], type=Surroundings, dec_hook=_path_of)


def serve(application: ASGIApp, port: int) -> None:
    """Serve on loopback until SIGTERM, with the options that our own worker has, but uvicorn's own protocol."""
    uvicorn.run(
        application,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_default("listen_backlog"),
        timeout_keep_alive=_default("keep_alive_seconds"),
        timeout_graceful_shutdown=_default("shutdown_grace_seconds"),
    )


def _default(setting: str) -> int:
    return int(Settings.model_fields[setting].default)


def _path_of(kind: type, text: str) -> Path:
    assert kind is Path  # noqa: S101 - the only field that JSON has no word for
    return Path(text)
