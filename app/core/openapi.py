"""Declares problems on routes, and makes the one OpenAPI 3.1 document out of FastAPI's and the gate's."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from fastapi import FastAPI

from app.core.openapi_examples import add_body_example
from app.core.problems import (
    PROBLEM_MEDIA_TYPE,
    TYPE_PREFIX,
    BodyTooLarge,
    IdempotencyMismatch,
    InternalError,
    MalformedJson,
    NotAuthenticated,
    Problem,
    RateLimited,
    TokenExpired,
    Unavailable,
    UnsupportedMediaType,
    ValidationFailed,
)

Document = dict[str, Any]

OPENAPI_URL: Final = "/openapi.json"
DOCS_URL: Final = "/docs"
ERRORS_URL: Final = "/docs/errors"

# The version of the contract, which is also in every path; the program has its own.
API_VERSION: Final = "1"
TITLE: Final = "Clocktower"
SUMMARY: Final = "Books scarce, free, public places: 钟楼街道服务站预约。"
DESCRIPTION: Final = f"""
Times are RFC 3339 with an offset; ids are UUIDs; names are snake_case; unknown fields are refused.

A refusal is a problem document (RFC 9457) with a stable `code`: [all codes and what to do on each]({ERRORS_URL}).

Signed-in writes take `Idempotency-Key`. A claim is named by its own id instead, and giving back again changes nothing.
So every request can be sent again when its answer was lost.
"""

# In the order of a parent's way through the API, then the staff's.
TAGS: Final[tuple[Mapping[str, str], ...]] = (
    {"name": "service", "description": "The server's time, and whether it is there."},
    {"name": "auth", "description": "Signing in with a code from `wx.login`, and keeping signed in."},
    {"name": "roles", "description": "Who may do more than a resident, and where."},
    {"name": "family", "description": "The people whom an account may book for, consents, a second guardian."},
    {"name": "stations", "description": "Units, service stations and service points."},
    {"name": "programme", "description": "Activities and their sessions."},
    {"name": "releases", "description": "What opens when, with its sessions and places; making and publishing it."},
    {"name": "passes", "description": "Asking before the opening who may take part in what."},
    {"name": "claims", "description": "The grab, what became of it, and giving places back."},
)

SECURITY_SCHEMES: Final[Mapping[str, Document]] = {
    "Bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The `access_token` of a sign-in.",
    },
    "Pass": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`Pass <pass>`, with the pass from `POST /v1/releases/{id}/pass`.",
    },
}

_PROBLEM_SCHEMA: Final[Document] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457. Further members depend on the code.",
    "required": ["type", "title", "status", "detail", "code", "retryable", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": f"Stable; see {ERRORS_URL}."},
        "retryable": {"type": "boolean", "description": f"Whether trying again may help; how, see {ERRORS_URL}."},
        "retry_after_ms": {"type": "integer", "minimum": 0},
        "request_id": {"type": "string", "description": "Names this request in our logs."},
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/FieldError"}},
    },
}
_FIELD_ERROR_SCHEMA: Final[Document] = {
    "type": "object",
    "title": "FieldError",
    "required": ["field", "code", "message"],
    "properties": {
        "field": {"type": "string", "examples": ["people[3].id"]},
        "code": {"type": "string", "examples": ["too_long"]},
        "message": {"type": "string"},
    },
}
_ALWAYS: Final[tuple[type[Problem], ...]] = (RateLimited, InternalError, Unavailable)


def problems(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """Return what a route's `responses=` wants: each status with its codes, and an example for each code."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        known: Document = responses.setdefault(kind.status, _empty_response())
        _add(known, kind)
    return responses


def every_problem() -> list[type[Problem]]:
    """Return every kind of problem that this process knows, by status and code. Import the features first."""
    return sorted(set(_subclasses(Problem)), key=lambda kind: (kind.status, kind.code))


def merge_paths(openapi: Document, extra: Mapping[str, Any]) -> Document:
    """Add the paths and components of `extra` to `openapi`, in place, and return it.

    Raises `ValueError` where both describe the same operation, or the same component differently: one would be a lie.
    """
    paths: Document = openapi.setdefault("paths", {})
    for path, item in cast("Mapping[str, Document]", extra.get("paths", {})).items():
        known = paths.setdefault(path, {})
        for method, operation in item.items():
            if method in known:
                raise ValueError(f"{method.upper()} {path} is described twice")
            known[method] = operation
    components: Document = openapi.setdefault("components", {})
    for kind, named in cast("Mapping[str, Mapping[str, Any]]", extra.get("components", {})).items():
        group: Document = components.setdefault(kind, {})
        for name, component in named.items():
            if group.setdefault(name, component) != component:
                raise ValueError(f"the component {kind}/{name} is described in two ways")
    return openapi


def complete(openapi: Document) -> Document:
    """Bring a merged document to the house's form, in place, and return it.

    Every operation gets the problems that any of them can answer; FastAPI's own form of a 422 gives way to ours;
    security schemes and schemas of problems are there once.
    """
    components: Document = openapi.setdefault("components", {})
    schemas: Document = components.setdefault("schemas", {})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    schemas["Problem"] = copy.deepcopy(_PROBLEM_SCHEMA)
    schemas["FieldError"] = copy.deepcopy(_FIELD_ERROR_SCHEMA)
    components["securitySchemes"] = {**components.get("securitySchemes", {}), **copy.deepcopy(SECURITY_SCHEMES)}
    for operation in _operations(openapi):
        _complete_operation(operation)
        add_body_example(operation, schemas)
    return openapi


def describe(api: FastAPI, *extras: Mapping[str, Any]) -> None:
    """Make `api.openapi()` return the merged and completed document, built once."""
    build = api.openapi
    document: Document | None = None

    def openapi() -> Document:
        nonlocal document
        if document is None:
            document = copy.deepcopy(build())
            for extra in extras:
                merge_paths(document, copy.deepcopy(dict(extra)))
            complete(document)
        return document

    api.openapi = openapi


def _complete_operation(operation: Document) -> None:
    operation["tags"] = list(dict.fromkeys(operation.get("tags", [])))
    responses: Document = operation.setdefault("responses", {})
    fastapis_own = responses.get("422", {}).get("content", {}).get("application/json")
    takes_input = fastapis_own is not None or "requestBody" in operation
    if fastapis_own is not None:
        del responses["422"]
    signed_in = any("Bearer" in requirement for requirement in operation.get("security", []))
    if not signed_in:
        _drop_idempotency_key(operation)
    kinds: list[type[Problem]] = [*_ALWAYS]
    if takes_input:
        kinds.append(ValidationFailed)
    if "requestBody" in operation:
        kinds += [MalformedJson, BodyTooLarge, UnsupportedMediaType]
    if signed_in:
        kinds += [NotAuthenticated, TokenExpired]
    if any(parameter.get("name") == "Idempotency-Key" for parameter in operation.get("parameters", [])):
        kinds.append(IdempotencyMismatch)
    for kind in kinds:
        _add(responses.setdefault(str(kind.status), _empty_response()), kind)
    operation["responses"] = dict(sorted(responses.items()))


def _drop_idempotency_key(operation: Document) -> None:
    """Remove the header from operations without an account, for which no keys are kept."""
    parameters = [p for p in operation.get("parameters", []) if p.get("name") != "Idempotency-Key"]
    if parameters:
        operation["parameters"] = parameters
    else:
        operation.pop("parameters", None)


def _operations(openapi: Document) -> Iterator[Document]:
    methods = {"get", "put", "post", "delete"}
    for item in cast("Mapping[str, Document]", openapi.get("paths", {})).values():
        yield from (operation for method, operation in item.items() if method in methods)


def _empty_response() -> Document:
    return {
        "description": "",
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
    }


def _add(response: Document, kind: type[Problem]) -> None:
    content: Document = response.setdefault("content", {}).setdefault(
        PROBLEM_MEDIA_TYPE, {"schema": {"$ref": "#/components/schemas/Problem"}}
    )
    examples: Document = content.setdefault("examples", {})
    if kind.code in examples:
        return
    examples[kind.code] = {"summary": kind.title_en, "value": _example(kind)}
    sentence = f"`{kind.code}`: {kind.title_en}."
    response["description"] = f"{response.get('description', '')} {sentence}".strip()


def _example(kind: type[Problem]) -> Document:
    example: Document = {
        "type": TYPE_PREFIX + kind.code,
        "title": kind.title_zh,
        "status": kind.status,
        "detail": kind.title_zh,
        "code": kind.code,
        "retryable": kind.retryable,
        "request_id": "6f1c0e9a4b7d2f3851c0a7de",
    }
    if kind.retryable:
        example["retry_after_ms"] = 2_000
    return example


def _subclasses(kind: type[Problem]) -> Iterator[type[Problem]]:
    for subclass in kind.__subclasses__():
        # A class without a code of its own only groups others.
        if hasattr(subclass, "code") and hasattr(subclass, "status"):
            yield subclass
        yield from _subclasses(subclass)
