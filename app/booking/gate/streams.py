"""Reads rows by the hundred thousand: as `COPY … TO STDOUT (FORMAT binary)` sends them, and unpacked all at once.

A million rows through a cursor take some five microseconds each, for objects that nobody wants to keep. Here ids stay
the 16 bytes that they are, and PostgreSQL goes on sending while the rows before are used.

The form is that of PostgreSQL's manual, COPY, "Binary Format": a head, then for each row the number of its columns (16
bits) and for each column its length (32 bits) and value, in network order.
"""

from collections.abc import Awaitable, Callable, Iterator
from struct import Struct, calcsize
from typing import Any, Final

import asyncpg

_HEAD: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END: Final = b"\xff\xff"
# A timestamptz is told in microseconds since 2000; here it lies after 1970, in milliseconds.
_SINCE_1970_MS: Final = 946_684_800_000

# Takes rows, as many as came in one piece: tuples of ints and bytes. What it awaits holds the server up.
Take = Callable[[Iterator[tuple[Any, ...]]], Awaitable[None]]


class NotThisFormError(Exception):
    """A row is not of the form that its reader was promised: a defect of the statement, or of the form."""


def ms_of_timestamp(sent: int) -> int:
    """Return a timestamptz, as it is sent, as Unix milliseconds."""
    return (sent + 500) // 1_000 + _SINCE_1970_MS


class RowForm:
    """The form of rows in which every column has one width and none is null.

    `columns` are as `struct` names them: `16s` for a uuid, `h`, `i` and `q` for smallint, integer and bigint, `q` for a
    timestamptz.
    """

    def __init__(self, *columns: str) -> None:
        lengths = [calcsize(">" + column) for column in columns]
        self._row = Struct(">2x" + "".join("4x" + column for column in columns))
        # Every byte of a row that is no value, and what it has to be: the number of columns, and their lengths.
        frame = list(enumerate(len(columns).to_bytes(2, "big")))
        at = len(frame)
        for length in lengths:
            frame += enumerate(length.to_bytes(4, "big"), start=at)
            at += 4 + length
        self._frame = tuple(frame)

    def unpack(self, packed: bytes) -> tuple[Iterator[tuple[Any, ...]], bytes]:
        """Return the whole rows at the beginning, and the rest. Raises `NotThisFormError`."""
        count = len(packed) // self._row.size
        whole, rest = packed[: count * self._row.size], packed[count * self._row.size :]
        # Otherwise one null would make rubbish of every row behind it, and some rubbish looks like places.
        for offset, byte in self._frame:
            if whole[offset :: self._row.size].count(byte) != count:
                raise NotThisFormError
        return self._row.iter_unpack(whole), rest


async def read_rows(
    connection: "asyncpg.pool.PoolConnectionProxy", statement: str, *arguments: object, form: RowForm, take: Take
) -> None:
    """Read what a statement returns, in pieces. Raises `NotThisFormError`, the driver's errors, and what `take` does."""
    rest = b""
    has_begun = False

    async def came(piece: bytes) -> None:
        nonlocal rest, has_begun
        rest += piece
        if not has_begun:
            if not rest.startswith(_HEAD):
                raise NotThisFormError
            rest, has_begun = rest.removeprefix(_HEAD), True
        rows, rest = form.unpack(rest)
        await take(rows)

    await connection.copy_from_query(statement, *arguments, output=came, format="binary")
    if rest != _END:
        raise NotThisFormError
