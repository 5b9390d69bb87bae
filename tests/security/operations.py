"""The operations of the API as its own document describes them: what a request needs, and what it may hear."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from app.main import create_api
from tests.conftest import make_settings

_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `body` is the document's own example; `refusals` are the declared codes of each status."""

    method: str
    path: str
    schemes: tuple[str, ...]
    is_open_to_nobody: bool
    path_parameters: tuple[str, ...]
    query_parameters: frozenset[str]
    takes_key: bool
    body: object
    granted: int
    refusals: Mapping[int, frozenset[str]]

    @property
    def label(self) -> str:
        """Return how tables name it."""
        return f"{self.method} {self.path}"


def _example(operation: Mapping[str, Any]) -> object:
    content: dict[str, Any] = operation.get("requestBody", {}).get("content", {}).get(_JSON, {})
    if "examples" in content:
        return next(iter(content["examples"].values()))["value"]
    return content.get("example")


def _read(method: str, path: str, operation: Mapping[str, Any]) -> Operation:
    parameters: list[dict[str, Any]] = operation.get("parameters", [])
    security: list[dict[str, Any]] = operation.get("security", [])
    responses: dict[str, dict[str, Any]] = operation["responses"]

    def named(place: str) -> tuple[str, ...]:
        return tuple(parameter["name"] for parameter in parameters if parameter["in"] == place)

    return Operation(
        method=method.upper(),
        path=path,
        schemes=tuple(dict.fromkeys(name for requirement in security for name in requirement)),
        # OpenAPI 3.1, "Security Requirement Object": none at all, or an empty one among others.
        is_open_to_nobody=not security or {} in security,
        path_parameters=named("path"),
        query_parameters=frozenset(named("query")),
        takes_key="Idempotency-Key" in named("header"),
        body=_example(operation),
        granted=min(int(status) for status in responses if status.startswith("2")),
        refusals={
            int(status): frozenset(response.get("content", {}).get(_PROBLEM, {}).get("examples", {}))
            for status, response in responses.items()
            if int(status) >= 400
        },
    )


def operations() -> dict[str, Operation]:
    """Return every operation by its label. Made without engines: the document is the same for all settings."""
    document = create_api(make_settings("postgresql:///nothing", "redis://127.0.0.1:1", "http://127.0.0.1:1")).openapi()
    paths = cast("dict[str, dict[str, dict[str, Any]]]", document["paths"])
    found = [_read(method, path, each) for path, item in paths.items() for method, each in item.items()]
    return {operation.label: operation for operation in found}
