"""`python -m app.wechat.fake`: the fake as a process of its own, on loopback unless told otherwise."""

import argparse
import asyncio
import os
import socket
import sys
from contextlib import suppress

import uvicorn

from app.wechat.fake.demo import DEMO_APP_ID, DEMO_APP_SECRET
from app.wechat.fake.server import FakeWeChat

BACKLOG = 2048


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.wechat.fake", description="Run the fake WeChat server.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--app-id", default=DEMO_APP_ID, help="the one AppID it knows (default: %(default)s)")
    parser.add_argument("--app-secret", default=DEMO_APP_SECRET, help="that AppID's secret (default: %(default)s)")
    parser.add_argument(
        "--announce-fd", type=int, help="write the port and a newline to this open file descriptor once it listens"
    )
    parser.add_argument(
        "--lifeline", action="store_true", help="stop when standard input ends, that is, with whoever holds it"
    )
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    fake = FakeWeChat(app_id=arguments.app_id, app_secret=arguments.app_secret)
    server = uvicorn.Server(
        uvicorn.Config(
            fake.application(),
            http="httptools",
            lifespan="off",
            access_log=False,
            log_level="warning",
            # A code that is slow on purpose must not hold up the end.
            timeout_graceful_shutdown=1,
        )
    )
    listener = socket.create_server((arguments.host, arguments.port), backlog=BACKLOG)
    if arguments.lifeline:
        _stop_at_end_of_input(server)
    port: int = listener.getsockname()[1]
    if arguments.announce_fd is None:
        sys.stdout.write(f"http://{arguments.host}:{port}\n")
        sys.stdout.flush()
    else:
        # From here on the kernel accepts connections; those that come before the loop does wait in the backlog.
        # Whoever started it may be gone already; its lifeline says so, too.
        with suppress(BrokenPipeError), os.fdopen(arguments.announce_fd, "w") as announcement:
            announcement.write(f"{port}\n")
    await server.serve(sockets=[listener])


def _stop_at_end_of_input(server: uvicorn.Server) -> None:
    loop = asyncio.get_running_loop()
    lifeline = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(lifeline, 4096):
            loop.remove_reader(lifeline)
            server.should_exit = True

    loop.add_reader(lifeline, readable)


def main() -> None:
    """Serve until SIGTERM, Ctrl-C, or the end of the lifeline."""
    import uvloop  # noqa: PLC0415 - only this entry needs it; the server itself runs on any loop

    uvloop.run(_serve(_arguments()))


if __name__ == "__main__":
    main()
