"""Engines for a moment: in a directory of their own, removed afterwards."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from app.cli import surroundings
from app.core.embedded import start_engines
from app.wechat.fake.demo import DEMO_APP_ID, DEMO_APP_SECRET


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
        shutil.rmtree(data_dir, ignore_errors=True)
