"""Counts what Redis is asked to do: commands on the wire, commands inside the scripts, and bytes both ways.

Valkey tells of every command itself, and of who called it (`MONITOR`); the bytes of each connection it has in its
books (`CLIENT LIST`). Both are read in blocking calls, so the loop, and with it the gate, stands still meanwhile.
"""

import os
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import hiredis

_ANSWER_SECONDS_MAX: Final = 10.0
_READ_BYTES: Final = 65_536
# Of a line of MONITOR: `1790000000.000000 [0 lua] "HMGET" …`, or an address in place of "lua".
_FROM_A_SCRIPT: Final = "[0 lua] "


class RedisCounts(NamedTuple):
    """What was asked of Redis. `commands` were sent; `script_commands` are those that scripts called there."""

    commands: int
    script_commands: int
    sent_bytes: int
    received_bytes: int

    def since(self, before: "RedisCounts") -> "RedisCounts":
        """Return what came after `before`."""
        return RedisCounts(*(now - then for now, then in zip(self, before, strict=True)))


class _Line:
    """A blocking connection. It calls nothing of Python's, so that it may be used while Python is counted."""

    def __init__(self, socket_: socket.socket) -> None:
        self._socket = socket_
        self._reader = hiredis.Reader()
        self.client_id = str(self.ask("CLIENT", "ID"))

    def ask(self, *command: str) -> object:
        """Return the answer to a command, of words without blanks or quotes (sent inline, as from a terminal)."""
        self._socket.sendall(" ".join(command).encode() + b"\r\n")
        return self.hear()

    def hear(self) -> object:
        """Return what the server says next."""
        while (reply := self._reader.gets()) is False:
            chunk = self._socket.recv(_READ_BYTES)
            assert chunk, "Valkey hung up"
            self._reader.feed(chunk)
        assert not isinstance(reply, hiredis.ReplyError), reply
        return reply


class RedisWork:
    """Two connections of an observer: one asks, the other hears of every command. Made by `observed`."""

    def __init__(self, asking: socket.socket, hearing: socket.socket, pid: int) -> None:
        self._pid = pid
        self._asking, self._hearing = _Line(asking), _Line(hearing)
        self._own_ids = {self._asking.client_id, self._hearing.client_id}
        self._commands = self._script_commands = self._marks = 0
        self._hearing.ask("MONITOR")

    def stand_still(self) -> None:
        """Freeze the server, until `go_on`."""
        os.kill(self._pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let the server go on. When this returns it has answered everything that it was sent meanwhile."""
        os.kill(self._pid, signal.SIGCONT)
        # The second question is read after the answers to all that was there with the first are written.
        for _ in range(2):
            self.pending("nothing")

    def pending(self, key: str) -> int:
        """Return how many claims Redis does not know to be in PostgreSQL yet."""
        count = self._asking.ask("ZCARD", key)
        self._commands -= 1
        assert isinstance(count, int)
        return count

    def counts(self) -> RedisCounts:
        """Return everything since the start, except what this observer asked."""
        sent_bytes = received_bytes = 0
        # Of this question MONITOR does not tell, as of no administrator's.
        for client in self._text("CLIENT", "LIST").splitlines():
            fields = dict(field.split("=", 1) for field in client.split(" "))
            if fields["id"] not in self._own_ids:
                sent_bytes += int(fields["tot-net-in"])
                received_bytes += int(fields["tot-net-out"])
        self._listen()
        return RedisCounts(self._commands, self._script_commands, sent_bytes, received_bytes)

    def _listen(self) -> None:
        """Hear of every command until this moment."""
        self._marks += 1
        mark = f'"mark-{self._marks}"'
        self._asking.ask("ECHO", mark.strip('"'))
        while mark not in (heard := self._heard()):
            if _FROM_A_SCRIPT in heard:
                self._script_commands += 1
            else:
                self._commands += 1

    def _heard(self) -> str:
        line = self._hearing.hear()
        assert isinstance(line, bytes)
        return line.decode(errors="replace")

    def _text(self, *command: str) -> str:
        text = self._asking.ask(*command)
        assert isinstance(text, bytes)
        return text.decode()


@contextmanager
def observed(socket_path: Path, pid: int) -> Generator[RedisWork]:
    """Observe the server behind this socket, which nobody else may observe meanwhile."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hearing,
    ):
        for one in (asking, hearing):
            one.settimeout(_ANSWER_SECONDS_MAX)
            one.connect(str(socket_path))
        yield RedisWork(asking, hearing, pid)
