"""One web worker: `python -m app.cli.web`, started by `clocktower serve` with a listening socket to answer on."""

import argparse
import asyncio
import os
import resource
import socket
import sys
import time
from functools import partial
from typing import Final, cast

import uvicorn

from app.booking.gate.protocol import GateProtocol
from app.cli.garbage import Collector
from app.cli.lifeline import end_with_parent, wait_for_word
from app.core.settings import Settings, SettingsError, load_settings

APPLICATION: Final = "app.main:create_app_from_environment"
# Some 25 µs each: all of them hold up the requests of a turn by less than a millisecond.
CONNECTIONS_A_TURN: Final = 32
# Of a worker: its engines, its modules, its doors. What it may open at all is little on some systems.
_OTHER_DESCRIPTORS: Final = 256


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it answers."""

    def __init__(self, config: uvicorn.Config, announce_fd: int) -> None:
        super().__init__(config)
        self._announce_fd = announce_fd
        self._collector = Collector()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Modules, routes and schemas stay for the life of the process.
        self._collector.begin()
        os.write(self._announce_fd, b"ready\n")
        os.close(self._announce_fd)

    async def on_tick(self, counter: int) -> bool:
        self._collector.tick(time.monotonic(), self.server_state.total_requests)
        return await super().on_tick(counter)


def web_config(settings: Settings) -> uvicorn.Config:
    """Return how a worker serves."""
    return uvicorn.Config(
        APPLICATION,
        factory=True,
        loop="uvloop",
        # uvicorn only calls it.
        http=cast("type[asyncio.Protocol]", partial(GateProtocol, connection_limit=_room_for_connections(settings))),
        ws="none",
        lifespan="on",
        # The application configures the logs of its process, uvicorn's included.
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=settings.listen_backlog,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_grace_seconds,
    )


def _room_for_connections(settings: Settings) -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(settings.connection_limit, max(descriptors - _OTHER_DESCRIPTORS, _OTHER_DESCRIPTORS))


def hang_up_on_whoever_reads_nothing(listener: socket.socket, settings: Settings) -> None:
    """Have the kernel break a connection, taken from this socket, whose answer nobody has read for so long.

    Otherwise it would keep what is not read for as long as the other side lives, also when we have hung up. Only Linux
    knows the option.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, settings.keep_alive_seconds * 1_000)


def doors_of(listener: socket.socket) -> list[socket.socket]:
    """Return a listening socket as often as connections are to be taken from it in one turn of the loop.

    libuv takes one for each descriptor and turn (since its version 1.45), and a turn lasts milliseconds when all are at
    it: a thousand phones that call in the second of an opening would wait for seconds until they are let in.
    """
    return [listener, *(listener.dup() for _ in range(CONNECTIONS_A_TURN - 1))]


def main() -> None:
    """Serve until SIGTERM, or until whoever started this process is gone."""
    parser = argparse.ArgumentParser(prog="python -m app.cli.web")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--announce-fd", type=int, required=True)
    parser.add_argument("--begin-fd", type=int, help="load everything, and begin at a word on this descriptor")
    arguments = parser.parse_args()
    end_with_parent()
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.exit(str(error))
    config = web_config(settings)
    # Makes the application; it asks nobody anything before the server starts.
    config.load()
    if arguments.begin_fd is not None:
        wait_for_word(arguments.begin_fd)
    server = _Server(config, arguments.announce_fd)
    listener = socket.socket(fileno=arguments.listen_fd)
    hang_up_on_whoever_reads_nothing(listener, settings)
    server.run(sockets=doors_of(listener))


if __name__ == "__main__":
    main()
