"""Engines for a moment: in a directory of their own, removed afterwards."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from app.cli import surroundings
from app.core.embedded import start_engines
from app.wechat.fake.demo import DEMO_APP_ID, DEMO_APP_SECRET

_REMOVING_SECONDS_MAX: Final = 10.0
_AGAIN_AFTER_SECONDS: Final = 0.1


@contextmanager
def scratch_engines() -> Generator[None]:
    """Run engines for the body, and let the environment name them. Raises `EngineFault`."""
    data_dir = Path(tempfile.mkdtemp(prefix="clocktower-scratch-"))
    before = dict(os.environ)
    try:
        with start_engines(data_dir, progress=lambda _sentence: None) as engines:
            os.environ[surroundings.DATABASE_URL] = engines.database_dsn
            os.environ[surroundings.REDIS_URL] = engines.redis_url
            os.environ.update({name: secrets.token_urlsafe(32) for name in surroundings.SECRETS})
            # Nobody signs in here, but settings are whole or they are none.
            os.environ.update(zip(surroundings.WECHAT, ("http://127.0.0.1", DEMO_APP_ID, DEMO_APP_SECRET), strict=True))
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        remove_tree(data_dir)


def remove_tree(directory: Path) -> None:
    """Remove a directory, also where a process that is about to end still makes a file in it."""
    until_seconds = time.monotonic() + _REMOVING_SECONDS_MAX
    while directory.exists() and time.monotonic() < until_seconds:
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            time.sleep(_AGAIN_AFTER_SECONDS)
