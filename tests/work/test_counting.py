"""The counters count everything once, and nothing of what the observer does."""

import asyncio
from collections.abc import Callable
from typing import cast

import asyncpg
import pytest
import uvloop
from redis.asyncio import Redis

from tests.work.engines import CountingEngines, counts_inside
from tests.work.postgres_line import LineCounts
from tests.work.python_work import PythonWork
from tests.work.redis_work import RedisCounts, observed

pytestmark = pytest.mark.anyio

# Somebody else's code: whatever is written in this package is not counted.
_CODE = """
def nothing():
    pass

def three_calls_and_a_loop(times):
    nothing()
    len("")
    for _ in range(times):
        pass
"""


def three_calls_and_a_loop() -> Callable[[int], None]:
    defined: dict[str, object] = {}
    exec(compile(_CODE, "elsewhere.py", "exec"), defined)  # noqa: S102 - code of another file
    return cast("Callable[[int], None]", defined["three_calls_and_a_loop"])


async def test_a_command_is_counted_where_it_is_sent_and_what_a_script_calls_apart(counting: CountingEngines) -> None:
    async with Redis.from_url(counting.redis_url) as redis:  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
        await redis.ping()  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues] - sync and async in one type
        with observed(counting.redis_socket, counting.redis_pid) as work:
            before = work.counts()
            await redis.set("key", "value")
            await redis.eval("redis.call('GET', KEYS[1]) return redis.call('STRLEN', KEYS[1])", 1, "key")  # pyright: ignore[reportGeneralTypeIssues]
            counted = work.counts().since(before)

    assert (counted.commands, counted.script_commands) == (2, 2)
    assert counted.received_bytes == len(b"+OK\r\n") + len(b":5\r\n")
    assert counted.sent_bytes > len(b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n")


def test_what_the_observer_asks_of_redis_is_not_counted(counting: CountingEngines) -> None:
    with observed(counting.redis_socket, counting.redis_pid) as work:
        before = work.counts()
        for _ in range(3):
            work.pending("nothing")
            work.counts()

        assert work.counts().since(before) == RedisCounts(0, 0, 0, 0)


async def test_statements_round_trips_and_transactions_of_the_line_are_told_apart(counting: CountingEngines) -> None:
    connection = await asyncpg.connect(counting.counted_dsn)
    try:
        before = counting.line.counts()
        await connection.execute("SELECT 1; SELECT 2")
        assert counting.line.counts().since(before)[:3] == (2, 1, 1)

        before = counting.line.counts()
        async with connection.transaction():
            await connection.execute("SELECT 1")
        assert counting.line.counts().since(before)[:3] == (3, 3, 1)

        before = counting.line.counts()
        assert counting.line.counts().since(before) == LineCounts()
    finally:
        await connection.close()


async def test_statements_inside_a_function_are_counted(counting: CountingEngines) -> None:
    observer = await asyncpg.connect(counting.observer_dsn)
    connection = await asyncpg.connect(counting.direct_dsn)
    try:
        before = await counts_inside(observer)
        await connection.execute("DO $$ BEGIN PERFORM 1 FROM release; PERFORM 2 FROM release; END $$")
        assert (await counts_inside(observer)).since(before).inner_statements == 2
    finally:
        await connection.close()
        await observer.close()


def test_calls_and_bytecodes_are_counted_and_are_the_same_each_time() -> None:
    work = PythonWork()
    of_somebody = three_calls_and_a_loop()
    counted: list[tuple[int, int]] = []
    for times in (5, 5, 6):
        with work:
            of_somebody(times)
        counted.append((work.calls, work.bytecodes))

    # The function, the two that it calls, and the range.
    assert [calls for calls, _ in counted] == [3, 3, 3]
    assert counted[0] == counted[1]
    assert counted[2][1] > counted[0][1]


def test_what_this_package_does_is_not_counted() -> None:
    work = PythonWork()
    with work:
        sum(len(str(number)) for number in range(10))

    assert (work.calls, work.bytecodes) == (0, 0)


def test_waiting_on_the_loop_is_no_work() -> None:
    work = PythonWork()

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        with work:
            turned: asyncio.Future[None] = loop.create_future()
            loop.call_later(0.001, turned.set_result, None)
            await turned

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(wait())

    assert (work.calls, work.bytecodes) == (0, 0)
