"""Goes through every state that can be reached, nearest first: the first broken promise has the shortest story."""

from collections import deque
from typing import NamedTuple

from tests.model.promises import broken_promise, broken_promise_at_rest
from tests.model.protocol import fault_steps, phone_steps, server_steps, without_spent
from tests.model.state import Guards, State


class Exploration(NamedTuple):
    """What was found: how many states, how many of them at rest, and the first promise broken, with its story."""

    state_count: int
    rest_count: int
    broken: str
    story: tuple[str, ...]


def explore(guards: Guards, start: State | None = None) -> Exploration:
    """Search from the start until a promise is broken or no new state can be reached."""
    start = start or State()
    came_from: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    rest_count = 0
    while queue:
        state = queue.popleft()
        broken = broken_promise(state)
        steps = [] if broken else list(server_steps(state, guards))
        if not broken and not steps:
            rest_count += 1
            broken = broken_promise_at_rest(state)
        if broken:
            return Exploration(len(came_from), rest_count, broken, _story(came_from, state))
        steps.extend(phone_steps(state, guards))
        steps.extend(fault_steps(state, guards))
        for label, reached in steps:
            after = without_spent(reached, guards)
            if after not in came_from:
                came_from[after] = (state, label)
                queue.append(after)
    return Exploration(len(came_from), rest_count, "", ())


def _story(came_from: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    story: list[str] = []
    while (origin := came_from[state]) is not None:
        state, label = origin
        story.append(label)
    return tuple(reversed(story))
