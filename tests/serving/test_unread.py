"""Phones that ask, and never read what they hear: the kernel breaks off, and a worker holds no more than it may."""

import socket
import sys
from collections.abc import Generator
from contextlib import ExitStack
from typing import Final
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from app.core.web.protocol import AHEAD_LIMIT
from tests.serving.servers import Server, await_true

KEEP_ALIVE_SECONDS: Final = 2
CONNECTION_LIMIT: Final = 20
# A long answer: so many of them are more than the two sockets hold, and the rest stays in the worker.
_ASKED: Final = b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n%b\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    running = Server.start(
        tmp_path_factory.mktemp("unread") / "data",
        env={
            "CLOCKTOWER_KEEP_ALIVE_SECONDS": str(KEEP_ALIVE_SECONDS),
            "CLOCKTOWER_CONNECTION_LIMIT": str(CONNECTION_LIMIT),
        },
    )
    yield running
    running.end()


def _connected(server: Server, stack: ExitStack) -> socket.socket:
    parts = urlsplit(server.address)
    phone = stack.enter_context(socket.socket())
    phone.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    phone.connect((parts.hostname, parts.port))
    return phone


def _kept(web: psutil.Process, phone: socket.socket) -> bool:
    """Tell whether a worker still has this phone's connection."""
    own = phone.getsockname()[1]
    return any(connection.raddr and connection.raddr.port == own for connection in web.net_connections("tcp"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux breaks off what nobody reads")
@pytest.mark.parametrize("last", [b"", b"connection: close\r\n"], ids=["goes on", "says that it is the last"])
def test_what_nobody_reads_is_kept_for_so_long_and_no_longer(server: Server, last: bytes) -> None:
    web = server.child("app.cli.web")
    with ExitStack() as stack:
        phone = _connected(server, stack)
        phone.sendall(_ASKED % b"" * AHEAD_LIMIT + _ASKED % last)
        await_true(lambda: _kept(web, phone))
        await_true(lambda: not _kept(web, phone))
    assert server.is_ready()


def test_a_worker_keeps_so_many_connections_and_sends_others_away(server: Server) -> None:
    with ExitStack() as stack:
        phones = [_connected(server, stack) for _ in range(CONNECTION_LIMIT + 5)]
        heard = phones[-1].recv(65_536)
        assert heard.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in heard
    await_true(lambda: httpx2.get(server.address + "/health/live").is_success)
