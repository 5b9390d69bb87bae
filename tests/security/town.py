"""A small town under attack: a family with everything that a family can have, and everybody else.

Stations, releases, children and claims are made over the API, as their owners make them. Callers are derived from the
roles and scopes that the town knows: a role that is new is tried the day it appears.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import httpx2
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app.accounts import service as accounts
from app.accounts.policy import SCOPES, Role, ScopeKind
from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of
from app.core.auth import sign_access_token
from app.core.clock import Clock
from app.core.db import sqlalchemy_url, transaction
from app.core.ids import new_id
from app.core.settings import Settings

Json = dict[str, Any]

# More than the families of a test run.
PLACES: Final = 200
_PATIENCE_SECONDS: Final = 30.0

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who sends a request. `grants` say what they may be, and where; `is_present` is false for the blocked."""

    name: str
    account_id: UUID | None = None
    token: str = ""
    role: Role | None = None
    scope_kind: ScopeKind | None = None
    scope_id: UUID | None = None
    is_in_good_standing: bool = True

    @property
    def bearer(self) -> dict[str, str]:
        """Return the headers of a signed-in request; none for nobody."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def is_staff_at(self, station_id: UUID) -> bool:
        """Tell whether this is staff of the station, or of all of them."""
        return (
            self.is_in_good_standing
            and self.role is Role.STAFF
            and (self.scope_kind is None or self.scope_id == station_id)
        )

    @property
    def is_operator(self) -> bool:
        """Tell whether this is an operator."""
        return self.is_in_good_standing and self.role is Role.OPERATOR


def in_hours(hours: float) -> str:
    """Return an instant as a caller writes it."""
    return (Clock().now() + timedelta(hours=hours)).isoformat()


@dataclass(frozen=True, slots=True)
class Town:
    """Two stations, an open release at the first one, and everybody who is not of the family."""

    address: str
    settings: Settings
    here: UUID
    elsewhere: UUID
    operator: Caller
    callers: tuple[Caller, ...]
    open_release: Json

    @property
    def signer(self) -> PassSigner:
        """Return who signs passes."""
        return PassSigner(self.settings.pass_key.get_secret_value())

    def pass_of(self, account_id: UUID, person_id: UUID, release: Json) -> str:
        """Return a genuine pass of an account for one person, who may claim every pool of the release."""
        pools = mask_of(set(range(len(release["pools"]))))
        in_an_hour_ms = Clock().now_ms() + 3_600_000
        return self.signer.sign(
            Pass.of(UUID(release["id"]), account_id, in_an_hour_ms, (PassPerson(person_id.bytes, pools, 0),))
        )


def session_at(station_id: UUID, *, capacity: int = 3, starts_in_hours: float = 48) -> Json:
    """Return one session of a release, for everybody."""
    return {
        "station_id": str(station_id),
        "title": "少儿书法",
        "starts_at": in_hours(starts_in_hours),
        "ends_at": in_hours(starts_in_hours + 1),
        "capacity": capacity,
    }


def release_of(*sessions: Json, opens_in_hours: float = 1) -> Json:
    """Return a whole release."""
    return {
        "title": "暑期课程",
        "opens_at": in_hours(opens_in_hours),
        "closes_at": in_hours(24),
        "person_limit": 10,
        "account_limit": 10,
        "sessions": list(sessions),
    }


def _said(answer: httpx2.Response) -> Json:
    assert answer.is_success, answer.text
    return answer.json()


async def make_draft(client: httpx2.AsyncClient, operator: Caller, body: Json) -> Json:
    """Make a draft."""
    return _said(await client.post("/v1/releases", json=body, headers=operator.bearer))


async def make_published(client: httpx2.AsyncClient, operator: Caller, body: Json) -> Json:
    """Make a release and publish it."""
    draft = await make_draft(client, operator, body)
    return _said(await client.post(f"/v1/releases/{draft['id']}/publish", headers=operator.bearer))


class _Registry:
    """Signs accounts in and grants roles, as the command line does."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings

    async def sign_in(
        self,
        name: str,
        *,
        role: Role | None = None,
        scope_kind: ScopeKind | None = None,
        scope_id: UUID | None = None,
        is_blocked: bool = False,
    ) -> Caller:
        now = Clock().now()
        async with transaction(self._engine) as db:
            tokens = await accounts.sign_in(
                db, openid=f"demo-{new_id().hex}", unionid=None, now=now, settings=self._settings
            )
            if role is not None:
                await accounts.grant_role(
                    db,
                    account_id=tokens.account_id,
                    role=role,
                    scope_kind=scope_kind,
                    scope_id=scope_id,
                    granted_by=None,
                    now=now,
                )
            if is_blocked:
                await db.execute(
                    text("UPDATE account SET blocked_at = now() WHERE id = :id"), {"id": tokens.account_id}
                )
        return Caller(name, tokens.account_id, tokens.access_token, role, scope_kind, scope_id, not is_blocked)


async def build_town(address: str, settings: Settings) -> Town:
    """Found the town and sign everybody in."""
    engine = create_async_engine(sqlalchemy_url(settings.database_url.get_secret_value()), poolclass=NullPool)
    try:
        async with httpx2.AsyncClient(base_url=address, timeout=_PATIENCE_SECONDS) as client:
            registry = _Registry(engine, settings)
            operator = await registry.sign_in("operator", role=Role.OPERATOR)
            units: list[UUID] = []
            stations: list[UUID] = []
            for number in (1, 2):
                unit = await client.post(
                    "/v1/units", json={"kind": "village", "name": f"示范村{number}"}, headers=operator.bearer
                )
                units.append(UUID(_said(unit)["id"]))
                station = {
                    "kind": "service_station",
                    "name": f"示范服务站{number}",
                    "host_kind": "village",
                    "unit_id": str(units[-1]),
                }
                made = await client.post("/v1/stations", json=station, headers=operator.bearer)
                stations.append(UUID(_said(made)["id"]))
            here, elsewhere = stations
            places: Mapping[ScopeKind | None, Mapping[str, UUID | None]] = {
                None: {"everywhere": None},
                ScopeKind.STATION: {"here": here, "elsewhere": elsewhere},
                ScopeKind.UNIT: {"here": units[0], "elsewhere": units[1]},
                ScopeKind.GROUP: {"somewhere": new_id()},
            }
            callers = [
                Caller("nobody"),
                await registry.sign_in("another parent"),
                await registry.sign_in("a blocked parent", is_blocked=True),
                await registry.sign_in("a blocked operator", role=Role.OPERATOR, is_blocked=True),
                await registry.sign_in(
                    "blocked staff", role=Role.STAFF, scope_kind=ScopeKind.STATION, scope_id=here, is_blocked=True
                ),
                _gone(settings),
            ]
            for role, kinds in SCOPES.items():
                for kind in kinds:
                    for place, scope_id in places[kind].items():
                        name = f"{role}, {kind or 'anything'} {place}"
                        callers.append(await registry.sign_in(name, role=role, scope_kind=kind, scope_id=scope_id))
            open_release = await make_published(
                client, operator, release_of(session_at(here, capacity=PLACES), opens_in_hours=-1)
            )
    finally:
        await engine.dispose()
    return Town(address, settings, here, elsewhere, operator, tuple(callers), open_release)


def _gone(settings: Settings) -> Caller:
    """Return somebody whose token is genuine, and whose account is not there any more."""
    account_id = new_id()
    token = sign_access_token(
        account_id,
        key=settings.token_key.get_secret_value().encode(),
        now_ms=Clock().now_ms(),
        lifetime_seconds=settings.access_token_seconds,
    )
    return Caller("an account that is gone", account_id, token, is_in_good_standing=False)


@dataclass(frozen=True, slots=True)
class Household:
    """A parent with a child, a pass, a claim, an open invitation and a role. Each is a fact of this family alone."""

    parent: Caller
    openid: str
    refresh_token: str
    nickname: str
    birth_month: str
    person_id: str
    gate_pass: str
    claim_id: str
    booking_id: str
    invitation: str
    grant_id: str

    @classmethod
    async def of(cls, town: Town, client: httpx2.AsyncClient) -> "Household":
        """Let a family do everything that a family does."""
        openid = f"demo-{new_id().hex}"
        tokens = _said(await client.post("/v1/auth/wechat", json={"code": openid}))
        parent = Caller("the family", UUID(tokens["account"]["id"]), tokens["access_token"])
        child = await add_child(town, client, parent)
        invited = await client.post(f"/v1/me/people/{child.person_id}/invitations", headers=parent.bearer)
        role = {
            "account_id": str(parent.account_id),
            "role": "member",
            "scope": {"kind": "group", "id": str(new_id())},
        }
        granted = await client.post("/v1/roles", json=role, headers=town.operator.bearer)
        return cls(
            parent=parent,
            openid=openid,
            refresh_token=tokens["refresh_token"],
            **child._asdict(),
            invitation=_said(invited)["token"],
            grant_id=_said(granted)["id"],
        )

    def facts(self) -> Mapping[str, str]:
        """Return what is nobody else's business, by name."""
        return {
            "account": str(self.parent.account_id),
            "open id": self.openid,
            "access token": self.parent.token,
            "refresh token": self.refresh_token,
            "nickname": self.nickname,
            "month of birth": self.birth_month,
            "person": self.person_id,
            "pass": self.gate_pass,
            "claim": self.claim_id,
            "booking": self.booking_id,
            "invitation": self.invitation,
            "grant": self.grant_id,
        }


class Child(NamedTuple):
    """A child, the pass for it, and its place in the open release."""

    nickname: str
    birth_month: str
    person_id: str
    gate_pass: str
    claim_id: str
    booking_id: str


async def add_child(town: Town, client: httpx2.AsyncClient, parent: Caller) -> Child:
    """Register a child that is like no other, and claim a place for it."""
    number = next(_numbers)
    nickname, birth_month = f"绝密{number:06}", f"{1950 + number // 12}-{number % 12 + 1:02}"
    person = {
        "nickname": nickname,
        "birth_month": birth_month,
        "relation": "child",
        "resident_unit_id": None,
        "consent": {"version": "2026-09", "purposes": ["booking"]},
    }
    person_id: str = _said(await client.post("/v1/me/people", json=person, headers=parent.bearer))["id"]
    release_id = town.open_release["id"]
    body = {"people": [person_id]}
    passed = await client.post(f"/v1/releases/{release_id}/pass", json=body, headers=parent.bearer)
    gate_pass: str = _said(passed)["pass"]
    claim_id = str(new_id())
    claimed = await client.put(
        f"/v1/claims/{claim_id}",
        json={"release": release_id, **body, "choices": [town.open_release["pools"][0]["id"]]},
        headers={"authorization": f"Pass {gate_pass}"},
    )
    return Child(nickname, birth_month, person_id, gate_pass, claim_id, _said(claimed)["bookings"][0]["id"])


def facts_in(answer: httpx2.Response, household: Household, *, sent: str) -> list[str]:
    """Return the names of the family's facts that an answer holds, in whatever notation, and the request did not."""
    body = answer.text
    if body and "json" in answer.headers.get("content-type", ""):
        body += json.dumps(answer.json(), ensure_ascii=False)
    told = body + repr(answer.headers.multi_items())
    return [name for name, fact in household.facts().items() if fact in told and fact not in sent]
