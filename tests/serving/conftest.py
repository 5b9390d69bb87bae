"""Servers of the tests' own, ended whatever the test did."""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from tests.serving.servers import Server


class Serve(Protocol):
    """Starts `clocktower serve` on a data directory."""

    def __call__(self, data_dir: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Server: ...


@pytest.fixture
def serve() -> Generator[Serve]:
    started: list[Server] = []

    def start(data_dir: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Server:
        server = Server.start(data_dir, *arguments, env=env)
        started.append(server)
        return server

    yield start
    for server in started:
        server.end()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """Run one server for the tests of a module that leave it as it was."""
    running = Server.start(tmp_path_factory.mktemp("served") / "data")
    yield running
    running.end()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
