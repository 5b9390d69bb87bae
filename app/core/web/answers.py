"""Carries problem documents over Starlette, for everything behind the edge."""

from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from app.core.problems import Problem
from app.core.web.documents import problem_answer

# The key of the request's id in the ASGI scope's `state`, where `request.state.request_id` finds it.
REQUEST_ID_STATE: Final = "request_id"


def request_id_of(scope: Scope) -> str:
    """Return the id that the edge gave this request, or "" where no edge stands in front."""
    state: Mapping[str, object] = scope.get("state", {})
    return str(state.get(REQUEST_ID_STATE, ""))


def problem_response(problem: Problem, scope: Scope) -> Response:
    """Return the answer to this request that tells the problem."""
    asked = Headers(scope=scope).get("accept-language", "")
    answer = problem_answer(problem, accept_language=asked.encode("latin-1"), request_id=request_id_of(scope))
    response = Response(answer.body_for(request_id_of(scope).encode("ascii")), answer.status)
    response.raw_headers.extend(answer.headers)
    return response
