"""Processes that own engines, and what is asked of both from outside."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import psutil
import redis

ROOT: Final = Path(__file__).parents[3]
PATIENCE_SECONDS: Final = 30.0

# Starts the engines, says where they are, then answers one line for each line it is told until told to stop.
OWNER: Final = """
import json, signal, sys
from pathlib import Path
from app.core.embedded import start_engines
interrupts = []
engines = start_engines(Path(sys.argv[1]), progress=lambda step: print(json.dumps({"step": step}), flush=True))
signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
print(json.dumps({"dsn": engines.database_dsn, "redis_url": engines.redis_url}), flush=True)
for line in sys.stdin:
    if line.strip() == "stop":
        break
    print(json.dumps({"interrupts": len(interrupts)}), flush=True)
engines.stop()
"""


def quiet(_step: str) -> None:
    """Drop progress."""


def ask(dsn: str, statement: str) -> object:
    async def fetch() -> object:
        connection = await asyncpg.connect(dsn, timeout=PATIENCE_SECONDS)
        try:
            value: object = await connection.fetchval(statement)
            return value
        finally:
            await connection.close()

    return asyncio.run(fetch())


def connect(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)  # pyright: ignore[reportUnknownMemberType] - **kwargs untyped


def ping(url: str) -> bool:
    with connect(url) as client:
        return client.ping()  # pyright: ignore[reportUnknownMemberType] - **kwargs untyped


def working_in(directory: Path) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(directory) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_child(pid: int | None) -> None:
    """Kill it and see it dead, leaving its status to whoever started it."""
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@dataclass
class Owner:
    """A process that owns engines, to be killed, interrupted or told to stop."""

    process: subprocess.Popen[str]

    def read(self) -> dict[str, object]:
        assert self.process.stdout is not None
        answer: dict[str, object] = json.loads(self.process.stdout.readline())
        return answer

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def await_started(self) -> dict[str, object]:
        while "dsn" not in (answer := self.read()):
            assert "step" in answer
        return answer


@contextmanager
def owner(data_dir: Path) -> Generator[Owner]:
    with subprocess.Popen(  # noqa: S603 - our own interpreter and script
        [sys.executable, "-c", OWNER, str(data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Owner(process)
        finally:
            process.kill()
