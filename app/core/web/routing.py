"""Routes that read bodies strictly and can give an answer again. Every router of the API is an `ApiRouter`."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request, Response, params
from fastapi.routing import APIRoute

from app.core.problems import UnsupportedMediaType
from app.core.web.replays import IDEMPOTENT, Replayed, keep_answer
from app.core.web.strict_json import check_json, is_json

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_KEEPS_NO_ANSWER: Final = "keeps_no_answer"
_EndpointT = TypeVar("_EndpointT", bound=Callable[..., Any])


def keeps_no_answer(endpoint: _EndpointT) -> _EndpointT:
    """Mark an operation that takes no `Idempotency-Key`.

    It stores nothing, must not be answered twice alike, or changes nothing when it is sent again. One that opens a
    transaction of its own has to be marked: the record of its key would hold a second connection of the pool.
    """
    setattr(endpoint, _KEEPS_NO_ANSWER, True)
    return endpoint


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ApiRoute(APIRoute):
    """One operation. A body must be sound JSON of at most the edge's limit; a write honours `Idempotency-Key`."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        methods: set[str] | list[str] | None = None,
        dependencies: Sequence[params.Depends] | None = None,
        **rest: Any,
    ) -> None:
        writes = not _SAFE_METHODS.issuperset(methods or ["GET"]) and not getattr(endpoint, _KEEPS_NO_ANSWER, False)
        super().__init__(
            path,
            endpoint,
            methods=methods,
            dependencies=[*([IDEMPOTENT] if writes else []), *(dependencies or [])],
            **rest,
        )

    def get_route_handler(self) -> Handler:
        """Wrap FastAPI's handler. All of it runs before `Tx` commits, so what is kept here commits with the write."""
        handle = super().get_route_handler()
        takes_body = self.body_field is not None

        async def strictly(request: Request) -> Response:
            if takes_body:
                await _check_body(request)
            try:
                response = await handle(request)
            except Replayed as replayed:
                return replayed.response
            await keep_answer(request, response)
            return response

        return strictly


class ApiRouter(APIRouter):
    """A router whose operations are `ApiRoute`s."""

    def __init__(self, *, tags: list[str] | None = None, prefix: str = "", **rest: Any) -> None:
        super().__init__(prefix=prefix, tags=[*(tags or [])], route_class=ApiRoute, redirect_slashes=False, **rest)


async def _check_body(request: Request) -> None:
    body = await request.body()
    if not body:
        return
    if not is_json(request.headers.get("content-type")):
        raise UnsupportedMediaType
    check_json(body)
