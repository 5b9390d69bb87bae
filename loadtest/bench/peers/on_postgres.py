"""What the two peers that count in PostgreSQL alone have in common: one transaction for each request, on a pool.

They differ in how a place is found and taken: see `row_lock` and `skip_locked`.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

import asyncpg
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loadtest.bench.peers import Command, Surroundings
from loadtest.bench.peers.claims import (
    ClaimBody,
    ClaimView,
    PassCheck,
    RefusedError,
    already_booked,
    refusal,
    sold_out,
)
from loadtest.bench.peers.serving import own_surroundings, python_command, serve

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# More would only wait for one another in PostgreSQL.
_CONNECTIONS: Final = 20


@dataclass(slots=True)
class OnPostgres:
    """A peer whose tables are made by a `schema.sql` beside its server, in a schema of their own."""

    name: str
    what: str
    # Takes a pool and its number of places.
    fill: str
    count_winners: str

    def install(self, progress: Callable[[str], None]) -> None:
        """Do nothing: it needs no more than this service does."""

    async def prepare(self, surroundings: Surroundings) -> None:
        """Make the tables anew, with every place free."""
        schema = resources.files(f"loadtest.bench.peers.{self.name}").joinpath("schema.sql").read_text("utf-8")
        async with _connected(surroundings) as connection:
            await connection.execute(schema)
            await connection.executemany(
                self.fill, [(pool_id, surroundings.places) for pool_id in surroundings.pool_ids]
            )

    def command(self, surroundings: Surroundings) -> Command:
        """Return how to start it."""
        return python_command(f"loadtest.bench.peers.{self.name}.server", surroundings)

    def requests(self, claims: Sequence[bytes], surroundings: Surroundings) -> Sequence[bytes]:
        """Return the claims as they are."""
        del surroundings
        return claims

    async def winners(self, surroundings: Surroundings) -> int:
        """Count the rows of those who have a place."""
        async with _connected(surroundings) as connection:
            return int(await connection.fetchval(self.count_winners))


class Take(Protocol):
    """Takes places in PostgreSQL, inside a transaction."""

    async def __call__(
        self, connection: "PoolConnectionProxy[asyncpg.Record]", claim_id: UUID, claim: ClaimBody
    ) -> UUID | None:
        """Return the pool that now has all the people; None where none of the choices has room for them.

        Raises `UniqueViolationError` where one of them is there already, or the claim was placed before.
        """
        ...


class _Town:
    def __init__(self, surroundings: Surroundings, take: Take, find: str) -> None:
        self._surroundings = surroundings
        self._passes = PassCheck(surroundings)
        self._take = take
        self._find = find
        self._database: asyncpg.Pool | None = None

    @asynccontextmanager
    async def lifespan(self, _application: Starlette) -> AsyncGenerator[None]:
        """Keep the connections open while the service runs."""
        async with asyncpg.create_pool(
            self._surroundings.database_url,
            min_size=_CONNECTIONS,
            max_size=_CONNECTIONS,
            # The default, unless the server's has been changed: a yes is on disk before it is spoken.
            server_settings={"synchronous_commit": "on"},
        ) as database:
            self._database = database
            yield

    async def put_claim(self, request: Request) -> Response:
        """Take places for the people of a claim, all of them or nobody; the same claim again is told the same."""
        claim_id: UUID = request.path_params["claim_id"]
        try:
            claim = ClaimBody.model_validate_json(await request.body())
            self._passes.check(request.headers.get("authorization", ""), claim)
        except ValidationError:
            return refusal(422, "validation_failed", "The request has a wrong field")
        except RefusedError as refused:
            return refused.answer()
        assert self._database is not None  # noqa: S101 - open since the start
        async with self._database.acquire() as connection:
            is_there = False
            try:
                async with connection.transaction():
                    pool_id = await self._take(connection, claim_id, claim)
            except asyncpg.UniqueViolationError:
                is_there, pool_id = True, None
            if pool_id is not None:
                return _won(201, claim_id, pool_id, claim)
            # Only those who got nothing are looked up: may be that they have it already.
            known: UUID | None = await connection.fetchval(self._find, claim_id)
        if known is not None:
            return _won(200, claim_id, known, claim)
        return already_booked() if is_there else sold_out()


def serve_on_postgres(take: Take, find: str) -> None:
    """Serve until SIGTERM. `find` is the statement that returns the pool of a claim, or nothing."""
    surroundings = own_surroundings()
    town = _Town(surroundings, take, find)
    route = Route("/v1/claims/{claim_id:uuid}", town.put_claim, methods=["PUT"])
    serve(Starlette(routes=[route], lifespan=town.lifespan), surroundings.port)


def _won(status: int, claim_id: UUID, pool_id: UUID, claim: ClaimBody) -> Response:
    view = ClaimView.of(claim_id, pool_id, claim.people)
    return Response(view.model_dump_json(), status, media_type="application/json")


@asynccontextmanager
async def _connected(surroundings: Surroundings) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(surroundings.database_url)
    try:
        yield connection
    finally:
        await connection.close()
