"""Roles: granted by operators, limited to where they hold, and denied by default."""

import itertools
from uuid import UUID

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts import service
from app.accounts.policy import SCOPES, Role, RoleGrantView, ScopeKind, holds
from app.core.db import transaction
from app.core.ids import new_id
from app.core.problems import Forbidden
from tests.accounts.parents import Parent, code_of, fresh_name, one, sign_in, sign_in_as, write

pytestmark = pytest.mark.anyio


def refusal(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, code_of(response)


async def new_station(engine: AsyncEngine) -> str:
    station_id = new_id()
    insert = """INSERT INTO station (id, kind, name, host_kind)
                VALUES (:id, 'service_station', :name, 'village')"""
    await write(engine, insert, id=station_id, name=f"示范服务站{station_id.hex}")
    return str(station_id)


@pytest.fixture
async def operator(client: httpx2.AsyncClient, engine: AsyncEngine) -> Parent:
    return await sign_in_as(client, engine, Role.OPERATOR)


async def test_everybody_is_a_resident_and_an_operator_says_so(client: httpx2.AsyncClient, operator: Parent) -> None:
    parent = await sign_in(client)
    resident = {"role": "resident", "scope_kind": None, "scope_id": None}
    assert (await parent.get("/v1/me")).json() == {"id": str(parent.account_id), "roles": [resident]}
    assert (await operator.get("/v1/me")).json() == {
        "id": str(operator.account_id),
        "roles": [resident, {"role": "operator", "scope_kind": None, "scope_id": None}],
    }


async def test_an_operator_grants_and_revokes_a_role_at_a_station(
    client: httpx2.AsyncClient, engine: AsyncEngine, operator: Parent
) -> None:
    parent, station_id = await sign_in(client), await new_station(engine)
    body = {"account_id": str(parent.account_id), "role": "staff", "scope": {"kind": "station", "id": station_id}}
    response = await operator.post("/v1/roles", body)
    assert response.status_code == 201
    grant = response.json()
    assert {**grant, "id": None, "granted_at": None} == {
        "id": None,
        "account_id": str(parent.account_id),
        "role": "staff",
        "scope_kind": "station",
        "scope_id": station_id,
        "granted_at": None,
    }
    # Sent again, it is the same grant.
    assert (await operator.post("/v1/roles", body)).json() == grant
    held = {"role": "staff", "scope_kind": "station", "scope_id": station_id}
    assert held in (await parent.get("/v1/me")).json()["roles"]
    listed = await operator.get(f"/v1/accounts/{parent.account_id}/roles")
    assert listed.json() == {"items": [grant], "next": None}
    assert (await operator.delete(f"/v1/roles/{grant['id']}")).status_code == 204
    assert refusal(await operator.delete(f"/v1/roles/{grant['id']}")) == (404, "not_found")
    assert held not in (await parent.get("/v1/me")).json()["roles"]
    assert (await operator.get(f"/v1/accounts/{parent.account_id}/roles")).json()["items"] == []
    assert await one(engine, "SELECT revoked_at IS NOT NULL FROM role_grant WHERE id = :id", id=grant["id"])


async def test_a_role_granted_by_open_id_waits_for_the_first_sign_in(
    client: httpx2.AsyncClient, operator: Parent
) -> None:
    name = fresh_name("officer")
    response = await operator.post("/v1/roles", {"openid": name, "role": "town_officer"})
    assert response.status_code == 201
    told = (await client.post("/v1/auth/wechat", json={"code": name})).json()
    assert told["account"] == {"id": response.json()["account_id"], "roles": ["resident", "town_officer"]}


@pytest.mark.parametrize("role", [None, *(role for role in Role if role not in {Role.RESIDENT, Role.OPERATOR})])
async def test_nobody_but_an_operator_grants_revokes_or_reads_roles(
    client: httpx2.AsyncClient, engine: AsyncEngine, operator: Parent, role: Role | None
) -> None:
    if role is None:
        caller = await sign_in(client)
    elif SCOPES[role][0] is None:
        caller = await sign_in_as(client, engine, role)
    else:
        caller = await sign_in_as(client, engine, role, ScopeKind.GROUP, new_id())
    grants = (await operator.get(f"/v1/accounts/{operator.account_id}/roles")).json()["items"]
    answers = [
        await caller.post("/v1/roles", {"account_id": str(caller.account_id), "role": "operator"}),
        await caller.delete(f"/v1/roles/{grants[0]['id']}"),
        await caller.delete(f"/v1/roles/{new_id()}"),
        await caller.get(f"/v1/accounts/{operator.account_id}/roles"),
        await caller.get(f"/v1/accounts/{caller.account_id}/roles"),
        await caller.get(f"/v1/accounts/{new_id()}/roles"),
    ]
    assert {refusal(answer) for answer in answers} == {(403, "forbidden")}
    assert (await operator.get("/v1/me")).json()["roles"][1]["role"] == "operator"


async def test_a_role_that_was_revoked_or_whose_account_is_blocked_counts_no_more(
    client: httpx2.AsyncClient, engine: AsyncEngine, operator: Parent
) -> None:
    second = await sign_in_as(client, engine, Role.OPERATOR)
    grants = (await operator.get(f"/v1/accounts/{second.account_id}/roles")).json()["items"]
    assert (await operator.delete(f"/v1/roles/{grants[0]['id']}")).status_code == 204
    assert refusal(await second.get(f"/v1/accounts/{operator.account_id}/roles")) == (403, "forbidden")
    third = await sign_in_as(client, engine, Role.OPERATOR)
    await write(engine, "UPDATE account SET blocked_at = now() WHERE id = :id", id=third.account_id)
    assert refusal(await third.get(f"/v1/accounts/{operator.account_id}/roles")) == (403, "forbidden")


async def test_a_grant_names_what_exists_and_fits(client: httpx2.AsyncClient, operator: Parent) -> None:
    account_id = str((await sign_in(client)).account_id)
    group = {"kind": "group", "id": str(new_id())}
    cases = [
        ({"account_id": str(new_id()), "role": "staff"}, 422, "unknown_account"),
        ({"account_id": account_id, "role": "operator", "scope": group}, 422, "role_scope_invalid"),
        ({"account_id": account_id, "role": "resident"}, 422, "role_scope_invalid"),
        ({"account_id": account_id, "role": "member"}, 422, "role_scope_invalid"),
        ({"account_id": account_id, "role": "staff", "scope": {**group, "kind": "station"}}, 422, "unknown_scope"),
        ({"account_id": account_id, "role": "inspector", "scope": {**group, "kind": "unit"}}, 422, "unknown_scope"),
        ({"account_id": account_id, "role": "king"}, 422, "validation_failed"),
        ({"role": "staff"}, 422, "validation_failed"),
        ({"account_id": account_id, "openid": "demo-x", "role": "staff"}, 422, "validation_failed"),
        ({"account_id": account_id, "role": "staff", "scope": {"kind": "station"}}, 422, "validation_failed"),
    ]
    for body, status, code in cases:
        assert refusal(await operator.post("/v1/roles", body)) == (status, code), body
    assert (await operator.get(f"/v1/accounts/{account_id}/roles")).json()["items"] == []
    assert refusal(await operator.get(f"/v1/accounts/{new_id()}/roles")) == (404, "not_found")


async def test_require_role_lets_staff_act_at_their_own_station_only(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    own, other = UUID(await new_station(engine)), UUID(await new_station(engine))
    staff = await sign_in_as(client, engine, Role.STAFF, ScopeKind.STATION, own)
    account_id = staff.account_id
    async with transaction(engine) as db:
        await service.require_role(db, account_id, Role.STAFF, station_id=own)
        await service.require_role(db, account_id, {Role.STAFF, Role.OPERATOR}, station_id=own)
        await service.require_role(db, account_id, Role.STAFF, any_scope=True)
        await service.require_role_at(db, account_id, Role.STAFF, station_ids=[own])
        with pytest.raises(Forbidden):
            await service.require_role(db, account_id, Role.STAFF, station_id=other)
        with pytest.raises(Forbidden):
            await service.require_role(db, account_id, Role.STAFF)
        with pytest.raises(Forbidden):
            await service.require_role(db, account_id, Role.OPERATOR, station_id=own, any_scope=True)
        with pytest.raises(Forbidden):
            await service.require_role_at(db, account_id, Role.STAFF, station_ids=[own, other])
        with pytest.raises(Forbidden):
            await service.require_role_at(db, account_id, Role.STAFF, station_ids=[])


async def test_no_grant_gives_another_role_and_no_limited_grant_reaches_beyond_its_scope(engine: AsyncEngine) -> None:
    now = await one(engine, "SELECT now()")
    here, elsewhere = new_id(), new_id()
    for granted, asked, kind in itertools.product(Role, Role, [None, *ScopeKind]):
        grant = RoleGrantView(new_id(), new_id(), granted, kind, here if kind else None, now)
        assert holds([grant], [asked], any_scope=True) == (granted is asked)
        assert holds([grant], [asked]) == (granted is asked and kind is None)
        assert holds([grant], [asked], station_id=elsewhere) == (granted is asked and kind is None)
        at_home = granted is asked and kind in {None, ScopeKind.STATION}
        assert holds([grant], [asked], station_id=here) == at_home
    assert not holds([], list(Role), any_scope=True)
