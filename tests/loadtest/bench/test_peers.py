"""A peer that promised less, or checked less, than we do would make the comparison unfair."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from app.core.embedded import Engines
from loadtest.bench.peers.bare import BARE
from loadtest.bench.peers.fastify import FASTIFY
from loadtest.bench.peers.row_lock import ROW_LOCK
from loadtest.bench.peers.skip_locked import SKIP_LOCKED
from loadtest.bench.peers.textbook import TEXTBOOK
from loadtest.http1 import Phone
from tests.loadtest.bench.conftest import PLACES, SETTLED, Standing, stand

pytestmark = pytest.mark.anyio

# What Fastify gives stays pending, because nobody writes it to PostgreSQL: then the script says "full", not "sold out".
NO_MORE: Final = {"sold_out", "full"}


@pytest.fixture(scope="module", params=[TEXTBOOK, FASTIFY, ROW_LOCK, SKIP_LOCKED], ids=lambda peer: peer.name)
async def standing(
    request: pytest.FixtureRequest,
    engines: Engines,
    database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncGenerator[Standing]:
    """Start each peer once: the tests take pools of their own."""
    async with stand(request.param, engines, database_url, tmp_path_factory.mktemp("peer")) as standing:
        yield standing


async def test_as_many_win_as_there_are_places_and_all_others_hear_that_there_are_none(standing: Standing) -> None:
    before = await standing.winners()
    wish, otherwise = standing.untouched(), standing.untouched()
    said = await asyncio.gather(*(standing.ask(standing.claim(wish, otherwise)) for _ in range(40)))
    assert Counter(answer.status for answer in said) == {201: 2 * PLACES, 409: 40 - 2 * PLACES}
    assert {answer.word for answer in said if answer.status == 409} <= NO_MORE
    assert await standing.winners() - before == 2 * PLACES
    pools = Counter(booking["pool"] for answer in said for booking in answer.body.get("bookings", ()))
    assert pools == {str(standing.around.pool_ids[ordinal]): PLACES for ordinal in (wish, otherwise)}


async def test_where_the_winners_are_settled_everybody_hears_that_it_is_sold_out(standing: Standing) -> None:
    for _ in range(PLACES):
        # A peer that does not look at the service's own rows has these places still.
        await standing.ask(standing.claim(SETTLED))
    before = await standing.winners()
    phone = Phone(standing.network)
    for _ in range(5):
        said = await standing.say(phone, standing.claim(SETTLED))
        assert (said.status, said.word) == (409, "sold_out")
    assert phone.is_connected, "a refusal must not cost the connection"
    assert await standing.winners() == before


async def test_the_same_claim_again_books_one_place(standing: Standing) -> None:
    before = await standing.winners()
    claim = standing.claim(standing.untouched(), standing.untouched())
    first, second = await asyncio.gather(standing.ask(claim), standing.ask(claim))
    third = await standing.ask(claim)
    assert sorted((first.status, second.status, third.status)) == [200, 200, 201]
    assert first.body["bookings"] == second.body["bookings"] == third.body["bookings"]
    assert await standing.winners() - before == 1


async def test_nobody_has_two_places_in_one_pool(standing: Standing) -> None:
    before = await standing.winners()
    pool, person = standing.untouched(), uuid4()
    # A place for each of them: with SKIP LOCKED a place that is being asked for looks taken.
    claims = (standing.claim(pool, people=(person,)) for _ in range(PLACES))
    said = await asyncio.gather(*(standing.ask(claim) for claim in claims))
    assert Counter(answer.status for answer in said) == {201: 1, 409: PLACES - 1}
    assert {answer.word for answer in said if answer.status == 409} <= {"already_booked", "undecided"}
    assert await standing.winners() - before == 1


async def test_a_family_has_its_places_together_or_none(standing: Standing) -> None:
    before = await standing.winners()
    pool, family, cousins = standing.untouched(), [uuid4() for _ in range(3)], [uuid4() for _ in range(3)]
    won = await standing.ask(standing.claim(pool, people=tuple(family)))
    assert {booking["person"] for booking in won.body["bookings"]} == {str(person) for person in family}
    assert (await standing.ask(standing.claim(pool, people=tuple(cousins)))).word in NO_MORE
    assert await standing.winners() - before == 3


async def test_a_pass_that_does_not_cover_the_claim_wins_nothing(standing: Standing) -> None:
    before = await standing.winners()
    pool, person, somebody_else = standing.untouched(), uuid4(), uuid4()
    genuine = standing.sign(person)
    first = genuine[0]
    passes = {
        "changed": ("B" if first == "A" else "A") + genuine[1:],
        "cut": genuine[:40],
        "signed with another key": standing.sign(person, key="another" * 6),
        "nonsense": "nonsense",
        "of another person": standing.sign(somebody_else),
        "of another pool": standing.sign(person, pools={SETTLED}),
        "expired": standing.sign(person, expires_ms=1),
    }
    for what, pass_text in passes.items():
        said = await standing.ask(standing.claim(pool, people=(person,), pass_text=pass_text))
        assert said.status == 403, what
    assert await standing.winners() == before
    assert (await standing.ask(standing.claim(pool, people=(person,), pass_text=genuine))).status == 201


async def test_a_claim_that_is_not_in_form_is_told_so(standing: Standing) -> None:
    before = await standing.winners()
    claim = standing.claim(standing.untouched())
    assert (await standing.ask(claim.replace(b'"people"', b'"person"'))).status == 422
    assert await standing.winners() == before


async def test_the_bare_server_answers_whatever_is_asked(engines: Engines, database_url: str, tmp_path: Path) -> None:
    async with stand(BARE, engines, database_url, tmp_path) as standing:
        phone = Phone(standing.network)
        for _ in range(3):
            assert (await phone.send(standing.claim(SETTLED))).status == 200
            assert (await phone.request("GET", "/v1/releases/1/availability")).body == b'{"ok":true}'
        assert phone.is_connected
        assert await standing.winners() == 0


def test_no_lock_file_of_a_peer_names_an_address() -> None:
    peers = Path(__file__).parents[3] / "loadtest" / "bench" / "peers"
    locks = [*peers.rglob("*lock*.json"), *peers.rglob("*.lock")]
    assert len(locks) == 2
    for lock in locks:
        assert "://" not in lock.read_text("utf-8"), lock
