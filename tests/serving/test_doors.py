"""Phones that call while the loop is busy are let in many at a time."""

import asyncio
import socket
from collections.abc import Generator, Sequence
from contextlib import ExitStack

import pytest
import uvloop

from app.cli.web import doors_of

PHONES = 96


async def turns_until_all_are_in(doors: Sequence[socket.socket], phones: int) -> int:
    """Let in everybody who has called already, and return how many turns of the loop that took."""
    loop = asyncio.get_running_loop()
    turns, callers = 0, list[asyncio.BaseTransport]()
    everybody = asyncio.Event()

    class Door(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            callers.append(transport)
            if len(callers) == phones:
                everybody.set()

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not everybody.is_set():
            loop.call_soon(turn)

    servers = [await loop.create_server(Door, sock=door) for door in doors]
    loop.call_soon(turn)
    async with asyncio.timeout(10):
        await everybody.wait()
    for closing in (*callers, *servers):
        closing.close()
    return turns


@pytest.fixture
def called() -> Generator[Sequence[socket.socket]]:
    """Give the doors of a worker at which phones wait, the first of them the listener itself."""
    with ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0), backlog=PHONES)
        doors = [stack.enter_context(door) for door in doors_of(listener)]
        for _ in range(PHONES):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        yield doors


def test_those_who_call_at_once_are_in_after_a_few_turns(called: Sequence[socket.socket]) -> None:
    assert uvloop.run(turns_until_all_are_in(called, PHONES)) < PHONES / 4


def test_a_door_alone_lets_in_one_a_turn(called: Sequence[socket.socket]) -> None:
    """If this fails, libuv takes all of them again, and the doors are not needed any more."""
    assert uvloop.run(turns_until_all_are_in(called[:1], PHONES)) >= PHONES
