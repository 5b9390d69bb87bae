"""Describes the gate's operations for the API's one document, from the types that the gate itself reads and writes."""

from typing import Any, Final

import msgspec

from app.booking.gate.errors import CLAIM_PROBLEMS, Busy, GateUnreachable, Rebuilding
from app.booking.gate.wire import BODIES, AvailabilityView, ClaimBody, ClaimView, PendingView
from app.core.openapi import problems
from app.core.problems import (
    BodyTooLarge,
    IdempotencyMismatch,
    MalformedJson,
    NotAuthenticated,
    NotFound,
    UnsupportedMediaType,
    ValidationFailed,
)

Document = dict[str, Any]

_POOL: Final = "0197a3c0-1c00-7000-8000-0000000000a1"
_CLAIM: Final = "0197a3c0-1c00-7000-8000-0000000000c1"
_PERSON: Final = "0197a3c0-1c00-7000-8000-0000000000e1"
_RELEASE: Final = "0197a3c0-1c00-7000-8000-0000000000f1"
_DECIDED_AT: Final = "2026-07-01T09:00:00.042+08:00"

_REQUEST_EXAMPLE: Final = {
    "release": _RELEASE,
    "people": [_PERSON],
    "choices": [_POOL],
    "together": True,
    "waitlist": False,
}
_BOOKING_EXAMPLE: Final = {"id": "0197a3c0-1c00-7000-8000-0000000000b1", "person": _PERSON, "pool": _POOL}
_CONFIRMED_EXAMPLE: Final = {
    "claim": _CLAIM,
    "release": _RELEASE,
    "state": "confirmed",
    "seq": 17,
    "bookings": [{**_BOOKING_EXAMPLE, "status": "confirmed", "place_no": 12, "position": None}],
    "decided_at": _DECIDED_AT,
}
_WAITING_EXAMPLE: Final = {
    "claim": _CLAIM,
    "release": _RELEASE,
    "state": "waitlisted",
    "seq": 301,
    "bookings": [{**_BOOKING_EXAMPLE, "status": "waitlisted", "place_no": None, "position": 3}],
    "decided_at": _DECIDED_AT,
}
_PENDING_EXAMPLE: Final = {"claim": _CLAIM, "state": "pending", "retry_after_ms": 500}
_AVAILABILITY_EXAMPLE: Final = {
    "release": _RELEASE,
    "as_of": _DECIDED_AT,
    "version": 42,
    "pools": [{"id": _POOL, "capacity": 35, "left": 7, "waiting": 0, "state": "open"}],
}


def gate_document() -> Document:
    """Return the paths and components of the operations that the gate answers."""
    schemas, components = msgspec.json.schema_components(BODIES, ref_template="#/components/schemas/{name}")
    refs = dict(zip((kind.__name__ for kind in BODIES), schemas, strict=True))
    return {
        "paths": {
            "/v1/claims/{claim_id}": {"put": _put_claim(refs)},
            "/v1/releases/{release_id}/availability": {"get": _get_availability(refs)},
        },
        "components": {"schemas": components},
    }


def _id_parameter(name: str, description: str) -> Document:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "format": "uuid"},
    }


def _content(schema: Document, **examples: object) -> Document:
    named = {name: {"value": value} for name, value in examples.items()}
    return {"application/json": {"schema": schema, "examples": named}}


def _put_claim(refs: dict[str, Document]) -> Document:
    claim = refs[ClaimView.__name__]
    return {
        "operationId": "put_claim",
        "tags": ["claims"],
        "summary": "The grab",
        "description": (
            "One tap. The id in the path is chosen by the phone (a UUID, best v7), so the request can be sent again "
            "whenever its answer was lost: the same id with the same body is the same claim. The pools are tried in "
            "order; the first that fits everybody is taken. A 201 is in the database when it is sent."
        ),
        "security": [{"Pass": []}],
        "parameters": [_id_parameter("claim_id", "Chosen by the phone, new for each new claim.")],
        "requestBody": {
            "required": True,
            "content": _content(refs[ClaimBody.__name__], claim=_REQUEST_EXAMPLE),
        },
        "responses": {
            "201": {"description": "Confirmed, and durable.", "content": _content(claim, confirmed=_CONFIRMED_EXAMPLE)},
            "200": {
                "description": "The same claim again: the same answer.",
                "content": _content(claim, confirmed=_CONFIRMED_EXAMPLE),
            },
            "202": {
                "description": "Waiting (durable), or not known yet: then send the same request again.",
                "content": _content(
                    {"anyOf": [claim, refs[PendingView.__name__]]},
                    waitlisted=_WAITING_EXAMPLE,
                    pending=_PENDING_EXAMPLE,
                ),
            },
            **_told(
                MalformedJson,
                NotAuthenticated,
                NotFound,
                *CLAIM_PROBLEMS,
                BodyTooLarge,
                UnsupportedMediaType,
                ValidationFailed,
                IdempotencyMismatch,
            ),
        },
    }


def _get_availability(refs: dict[str, Document]) -> Document:
    view = refs[AvailabilityView.__name__]
    return {
        "operationId": "read_availability",
        "tags": ["releases"],
        "summary": "What is left",
        "description": "At most 250 ms old. Send the ETag back as If-None-Match: 304 while nothing has changed.",
        "security": [],
        "parameters": [_id_parameter("release_id", "The release.")],
        "responses": {
            "200": {
                "description": "What is left of each pool.",
                "headers": {"ETag": {"schema": {"type": "string"}}},
                "content": _content(view, availability=_AVAILABILITY_EXAMPLE),
            },
            "304": {"description": "Nothing has changed."},
            **_told(NotFound, ValidationFailed, Busy, Rebuilding, GateUnreachable),
        },
    }


def _told(*kinds: Any) -> Document:
    return {str(status): response for status, response in problems(*kinds).items()}
