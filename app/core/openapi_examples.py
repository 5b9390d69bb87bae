"""Makes an example for every request body out of its schema, so that each can be tried from the docs as it stands."""

from collections.abc import Mapping
from typing import Any, Final, cast

Document = dict[str, Any]

# How deep a schema is followed; ours nest four levels.
_DEPTH_MAX: Final = 8
_BY_FORMAT: Final[Mapping[str, str]] = {
    "uuid": "0197a3c2-5b1e-7c40-9a52-0d6f1f0b7f11",
    "date-time": "2026-07-01T09:00:00+08:00",
    "date": "2026-07-01",
}
_BY_TYPE: Final[Mapping[str, object]] = {"boolean": True, "null": None, "string": "text"}


def add_body_example(operation: Document, schemas: Mapping[str, Document]) -> None:
    """Give the operation's JSON body an example, unless it has one."""
    body: Document = operation.get("requestBody", {})
    content: Document | None = body.get("content", {}).get("application/json")
    if content is None or "example" in content or "examples" in content:
        return
    content["example"] = example_of(content.get("schema", {}), schemas)


def example_of(schema: Document, schemas: Mapping[str, Document], depth: int = 0) -> object:
    """Return a value that a schema describes: its own example where it has one, else the simplest that fits."""
    if depth > _DEPTH_MAX:
        return None
    if "$ref" in schema:
        return example_of(schemas[str(schema["$ref"]).rpartition("/")[2]], schemas, depth + 1)
    for values in (schema.get(name) for name in ("examples", "enum")):
        if values:
            return cast("list[object]", values)[0]
    if "const" in schema:
        return cast("object", schema["const"])
    for kinds in (schema.get(name) for name in ("anyOf", "oneOf", "allOf")):
        if kinds:
            return example_of(cast("list[Document]", kinds)[0], schemas, depth + 1)
    return _plain_example(schema, schemas, depth)


def _plain_example(schema: Document, schemas: Mapping[str, Document], depth: int) -> object:
    match schema.get("type"):
        case "object":
            properties = cast("Mapping[str, Document]", schema.get("properties", {}))
            return {name: _member(each, schemas, depth) for name, each in properties.items()}
        case "array":
            return [example_of(cast("Document", schema.get("items", {})), schemas, depth + 1)]
        case "integer" | "number":
            return cast("object", schema.get("minimum", 1))
        case kind:
            return _BY_FORMAT.get(str(schema.get("format")), _BY_TYPE.get(str(kind), "text"))


def _member(schema: Document, schemas: Mapping[str, Document], depth: int) -> object:
    if "default" in schema and not schema.get("examples"):
        return cast("object", schema["default"])
    return example_of(schema, schemas, depth + 1)
