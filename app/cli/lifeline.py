"""Pipes between a process and the one that started it: a word through one, and its end, which comes with death too."""

import os
import sys
import threading
from collections.abc import Callable


def end_with_parent(ending: Callable[[], None] | None = None) -> None:
    """Call `ending` in a thread once standard input ends, which it does with the parent, even by kill -9.

    Without `ending` this process exits at once. That loses no promise: a yes is durable before it is spoken, and a
    phone without an answer asks again.
    """
    lifeline_fd = os.dup(sys.stdin.fileno())

    def watch() -> None:
        while os.read(lifeline_fd, 4096):
            pass
        if ending is None:
            os._exit(1)
        ending()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def wait_for_word(begin_fd: int) -> None:
    """Return once whoever started this process says so on `begin_fd`: from then on it may touch the engines.

    Without a word the end of the pipe is the parent's death, or its change of mind, and this process exits at once.
    """
    if not os.read(begin_fd, 1):
        os._exit(1)
    os.close(begin_fd)
