"""Opens the sockets that web workers answer on, one for each where the kernel can share out connections."""

import errno
import os
import socket
import sys
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Final

from app.cli.refusal import Refusal

# Linux shares out new connections evenly among sockets of one port. Workers that take from one common socket do not:
# whoever wakes first takes the whole burst. Elsewhere the option exists and shares out nothing.
SHARES_OUT: Final = sys.platform == "linux"

# What `bind` takes: host, port, and for IPv6 two numbers more.
_Address = tuple[str | int | bytes, ...]


def listening_sockets(host: str, port: int, workers: int) -> list[socket.socket]:
    """Bind one socket for each worker, or the same one for all. Nothing is accepted before a worker listens.

    Port 0 takes a free one. Raises `Refusal` with a sentence when the address cannot be had.
    """
    family, address = _resolve(host, port)
    try:
        if not SHARES_OUT or workers == 1:
            return [_bind(family, address, shared=False)] * workers
        if port:
            # Sockets that share a port do not notice a stranger who shares it too; a lone one does.
            _bind(family, address, shared=False).close()
        with ExitStack() as stack:
            first = stack.enter_context(_bind(family, address, shared=True))
            taken = (address[0], first.getsockname()[1], *address[2:])
            others = [stack.enter_context(_bind(family, taken, shared=True)) for _ in range(workers - 1)]
            stack.pop_all()
            return [first, *others]
    except OSError as problem:
        raise Refusal(_in_words(problem, host, port)) from problem


def address_of(listener: socket.socket) -> str:
    """Return the URL under which a socket is reached from this machine."""
    host: str = listener.getsockname()[0]
    port: int = listener.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - told apart, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_reached_from_elsewhere(listener: socket.socket) -> bool:
    """Tell whether other machines can reach a socket, too."""
    return not ip_address(listener.getsockname()[0]).is_loopback


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, _Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as problem:
        raise Refusal(f"The host {host} is not known; choose another --host.") from problem
    family, _, _, _, address = found[0]
    return family, address


def _bind(family: socket.AddressFamily, address: _Address, *, shared: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def _in_words(problem: OSError, host: str, port: int) -> str:
    match problem.errno:
        case errno.EADDRINUSE:
            return f"Port {port} of {host} is in use; stop what listens there or choose another --port."
        case errno.EACCES | errno.EPERM:
            return f"Port {port} may not be opened by this user; choose a --port from 1024 on."
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine; choose another --host."
        case _:
            return f"Port {port} of {host} cannot be opened ({os.strerror(problem.errno or 0)})."
