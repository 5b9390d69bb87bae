"""The demonstration town, bodies for its releases, and families that grab places there over the real API."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import httpx2

from app.core.clock import Clock
from app.core.ids import new_id
from app.programme.demonstration import demonstration_station_id

STATION = str(demonstration_station_id(1))
OTHER_STATION = str(demonstration_station_id(2))

Json = dict[str, Any]
Headers = dict[str, str]


class Ask(Protocol):
    """Signs somebody in under a name of the test's; gives the headers of their requests."""

    async def __call__(self, name: str) -> Headers: ...


def in_hours(hours: float) -> str:
    """Return an instant as a caller writes it."""
    return (Clock().now() + timedelta(hours=hours)).isoformat()


def session_body(number: int = 0, **changes: object) -> Json:
    """Return one session; the numbers lie two hours apart."""
    return {
        "station_id": STATION,
        "title": f"少儿书法{number}",
        "summary": "毛笔入门",
        "starts_at": in_hours(48 + 2 * number),
        "ends_at": in_hours(49 + 2 * number),
        "room": "201",
        "capacity": 3,
        "age_min": 6,
        "age_max": 12,
        "waitlist_limit": 5,
        "resident_unit_id": None,
        **changes,
    }


def release_body(*sessions: Json, opens_in_hours: float = 1, closes_in_hours: float = 24, **changes: object) -> Json:
    """Return a whole release: two sessions unless told."""
    return {
        "title": "暑期课程",
        "mode": "grab",
        "opens_at": in_hours(opens_in_hours),
        "closes_at": in_hours(closes_in_hours),
        "person_limit": 2,
        "account_limit": 4,
        "rules": "每人两门",
        "sessions": list(sessions) or [session_body(0), session_body(1)],
        **changes,
    }


async def created(client: httpx2.AsyncClient, staff: Headers, body: Json) -> Json:
    """Make a draft."""
    response = await client.post("/v1/releases", json=body, headers=staff)
    assert response.status_code == 201, response.text
    return response.json()


async def published(client: httpx2.AsyncClient, staff: Headers, body: Json) -> Json:
    """Make a release and publish it."""
    draft = await created(client, staff, body)
    response = await client.post(f"/v1/releases/{draft['id']}/publish", headers=staff)
    assert response.status_code == 200, response.text
    return response.json()


@dataclass(frozen=True, slots=True)
class Family:
    """A parent with one child of eight and a pass for one release."""

    headers: Headers
    release_id: str
    person_id: str
    gate_pass: str

    @classmethod
    async def of(cls, client: httpx2.AsyncClient, headers: Headers, release_id: str) -> "Family":
        """Register the child and ask for the pass."""
        now: datetime = Clock().now()
        person = {
            "nickname": "儿童丙0021",
            "birth_month": f"{now.year - 9}-01",
            "relation": "child",
            "resident_unit_id": None,
            "consent": {"version": "1", "purposes": ["booking"]},
        }
        made = await client.post("/v1/me/people", json=person, headers=headers)
        assert made.status_code == 201, made.text
        person_id = made.json()["id"]
        asked = await client.post(f"/v1/releases/{release_id}/pass", json={"people": [person_id]}, headers=headers)
        assert asked.status_code == 200, asked.text
        return cls(headers, release_id, person_id, asked.json()["pass"])

    async def grab(
        self, client: httpx2.AsyncClient, *pools: str, waitlist: bool = False, claim_id: UUID | None = None
    ) -> httpx2.Response:
        """Claim one place in one of the pools."""
        body = {"release": self.release_id, "people": [self.person_id], "choices": list(pools), "waitlist": waitlist}
        return await client.put(
            f"/v1/claims/{claim_id or new_id()}", json=body, headers={"Authorization": f"Pass {self.gate_pass}"}
        )
