"""What becomes of the places of a child who is removed for good."""

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest

from app.booking.gate.passes import PassSigner
from app.core.settings import Settings
from tests.accounts.parents import Parent, sign_in
from tests.booking.claims.conftest import Family, MakeFamily
from tests.booking.gate.builders import MadeRelease, Phone, Wish, commit, make_release, rows_of, winner
from tests.booking.gate.waits import until

pytestmark = pytest.mark.anyio

if TYPE_CHECKING:
    Db = asyncpg.Connection[asyncpg.Record]


async def children_of(parent: Parent, count: int) -> list[UUID]:
    return [UUID((await parent.register())["id"]) for _ in range(count)]


def family_of(parent: Parent, made: MadeRelease, settings: Settings, people: list[UUID]) -> Family:
    signer = PassSigner(settings.pass_key.get_secret_value())
    phone = Phone.with_pass(signer, made, people=people, account=parent.account_id)
    return Family(phone, parent.headers, parent.client)


async def test_the_place_of_a_child_removed_for_good_goes_to_whoever_waits_and_the_sibling_stays(
    db: "Db", client: httpx2.AsyncClient, make_family: MakeFamily, settings: Settings
) -> None:
    made = await make_release(db, capacities=(2,), waitlist_limit=5)
    parent = await sign_in(client)
    leaving, staying = await children_of(parent, 2)
    family = family_of(parent, made, settings, [leaving, staying])
    claim = UUID((await family.grab()).json()["claim"])
    waiter = await make_family("waiter", made)
    waiting = (await waiter.grab(waitlist=True)).json()["claim"]

    assert (await parent.delete(f"/v1/me/people/{leaving}")).status_code == 204

    assert [(person, status) for person, _, status in await rows_of(db, claim)] == [
        (leaving, "cancelled"),
        (staying, "confirmed"),
    ]
    assert (await family.read(f"/v1/claims/{claim}")).json()["state"] == "confirmed"
    # The gate has heard of it too: the same claim again tells the place.
    again = await waiter.grab(claim_id=waiting, waitlist=True)
    assert (again.status_code, again.json()["state"]) == (200, "confirmed")


async def test_a_place_for_which_nobody_waits_is_free_again_and_whoever_waited_waits_no_more(
    db: "Db", client: httpx2.AsyncClient, make_family: MakeFamily, settings: Settings
) -> None:
    made = await make_release(db, capacities=(1, 1), waitlist_limit=5)
    parent = await sign_in(client)
    (child,) = await children_of(parent, 1)
    family = family_of(parent, made, settings, [child])
    assert (await family.grab(0)).status_code == 201
    holder = await make_family("holder", made)
    held = (await holder.grab(1)).json()["claim"]
    waiting = UUID((await family.grab(1, waitlist=True)).json()["claim"])

    assert (await parent.delete(f"/v1/me/people/{child}")).status_code == 204

    newcomer = await make_family("newcomer", made)
    assert (await newcomer.grab(0)).status_code == 201
    await holder.give_back(f"/v1/claims/{held}")
    assert await rows_of(db, waiting) == [(child, None, "cancelled")]

    async def free_again() -> bool:
        return (await newcomer.grab(1)).status_code == 201

    await until(free_again)


async def test_a_child_whom_another_guardian_keeps_keeps_the_place(
    db: "Db", client: httpx2.AsyncClient, settings: Settings
) -> None:
    made = await make_release(db, capacities=(1,))
    mother, father = await sign_in(client), await sign_in(client)
    (child,) = await children_of(mother, 1)
    assert (await father.accept(await mother.invite(str(child)))).status_code == 201
    claim = UUID((await family_of(mother, made, settings, [child]).grab()).json()["claim"])

    assert (await mother.delete(f"/v1/me/people/{child}")).status_code == 204
    assert await rows_of(db, claim) == [(child, 1, "confirmed")]

    # The last guardian gives the place back, whoever claimed it.
    assert (await father.delete(f"/v1/me/people/{child}")).status_code == 204
    assert await rows_of(db, claim) == [(child, 1, "cancelled")]


async def test_what_has_begun_stays_and_what_begins_soon_is_given_back_without_notice(
    db: "Db", client: httpx2.AsyncClient, settings: Settings
) -> None:
    made = await make_release(db, capacities=(1, 1), start_hours=(-1, 1))
    assert settings.cancel_deadline_minutes > 60
    parent = await sign_in(client)
    (child,) = await children_of(parent, 1)
    begun = winner(Wish(child, 0), account=parent.account_id, seq=1)
    soon = winner(Wish(child, 1), account=parent.account_id, seq=2)
    assert set((await commit(db, made.at_epoch(0), begun, soon)).values()) == {"in"}

    assert (await parent.delete(f"/v1/me/people/{child}")).status_code == 204

    assert await rows_of(db, begun.record.claim_id) == [(child, 1, "confirmed")]
    assert await rows_of(db, soon.record.claim_id) == [(child, 1, "cancelled")]


async def test_a_removal_under_a_key_is_answered_again_and_gives_back_once(
    db: "Db", client: httpx2.AsyncClient, settings: Settings
) -> None:
    made = await make_release(db, capacities=(1,))
    parent = await sign_in(client)
    (child,) = await children_of(parent, 1)
    claim = UUID((await family_of(parent, made, settings, [child]).grab()).json()["claim"])
    headers = parent.headers | {"Idempotency-Key": str(uuid4())}

    answers = [await client.delete(f"/v1/me/people/{child}", headers=headers) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [204, 204]
    assert await rows_of(db, claim) == [(child, 1, "cancelled")]
    assert await db.fetchval("SELECT revision FROM claim WHERE id = $1", claim) == 2
