"""Children load while the engines are still being made ready, and ask them nothing before they are let."""

import select
import socket
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.cli import surroundings
from app.cli.processes import Child, Household
from tests.serving.servers import await_true

LOAD_SECONDS_MAX = 60.0
# Beside one that was not held, so that slow machines give both as long as they need.
MORE_SECONDS = 1.0


@pytest.fixture
def household() -> Generator[Household]:
    with Household() as household:
        yield household


def redis_at(path: Path, stack: ExitStack) -> socket.socket:
    """Listen as a Redis that says nothing."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    listener.listen()
    return listener


def is_asked(redis: socket.socket, seconds: float) -> bool:
    return bool(select.select([redis], [], [], seconds)[0])


@pytest.mark.parametrize("module", [["app.cli.web"], ["app.cli", "worker", "--lifeline"]], ids=["web", "background"])
def test_a_held_child_asks_no_engine_before_it_is_let(
    module: Sequence[str], household: Household, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        arguments = [f"--listen-fd={door.fileno()}"] if module == ["app.cli.web"] else []
        for name, key in zip(surroundings.SECRETS, "abc", strict=True):
            monkeypatch.setenv(name, key * 43)
        for name, value in zip(surroundings.WECHAT, ("http://127.0.0.1:9", "app", "secret"), strict=True):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(surroundings.DATABASE_URL, "postgresql://127.0.0.1:9/nothing")
        asked: dict[bool, socket.socket] = {}
        children: dict[bool, Child] = {}
        for held in (True, False):
            path = tmp_path / f"redis-{held}"
            asked[held] = redis_at(path, stack)
            monkeypatch.setenv(surroundings.REDIS_URL, f"unix://{path}")
            children[held] = Child("child", [*module, *arguments], stop_seconds=5, inherited_fd=door.fileno())
            household.launch([children[held]], held=held)
        assert is_asked(asked[False], LOAD_SECONDS_MAX)
        assert not is_asked(asked[True], MORE_SECONDS)
        children[True].begin()
        assert is_asked(asked[True], LOAD_SECONDS_MAX)


def test_a_held_child_that_hears_no_word_ends(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    # Never looked for: it is not let.
    monkeypatch.setenv(surroundings.DATABASE_URL, "postgresql://127.0.0.1:9/nothing")
    monkeypatch.setenv(surroundings.REDIS_URL, "redis://127.0.0.1:9")
    for name, value in zip(
        (*surroundings.SECRETS, *surroundings.WECHAT),
        ("a" * 43, "b" * 43, "c" * 43, "http://127.0.0.1:9", "app", "s"),
        strict=True,
    ):
        monkeypatch.setenv(name, value)
    # Its lifeline holds: only the pipe on which it waits ends, as both do when the parent dies.
    child = Child("child", ["app.cli", "worker", "--lifeline"], stop_seconds=5)
    household.launch([child], held=True)
    child._forget_begin()
    await_true(lambda: child.has_ended)
    assert not child.is_ready
