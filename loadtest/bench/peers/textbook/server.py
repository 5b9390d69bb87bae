"""Serves the textbook's claims: `python -m loadtest.bench.peers.textbook.server`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Final, cast
from uuid import UUID

from fastapi import FastAPI, Header, Response
from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection

from loadtest.bench.peers import Surroundings
from loadtest.bench.peers.claims import ClaimBody, ClaimView, PassCheck, RefusedError, already_booked, sold_out
from loadtest.bench.peers.serving import own_surroundings, serve
from loadtest.bench.peers.textbook import claims_key, holders_key, stock_key

# Those who find every connection lent wait for one; redis-py's other pool would refuse them.
_CONNECTIONS: Final = 50


class _Town:
    def __init__(self, surroundings: Surroundings) -> None:
        self._passes = PassCheck(surroundings)
        self._redis = Redis(
            connection_pool=BlockingConnectionPool(
                max_connections=_CONNECTIONS,
                connection_class=UnixDomainSocketConnection,
                path=str(surroundings.redis_socket),
            )
        )
        script = resources.files("loadtest.bench.peers.textbook").joinpath("claim.lua").read_text("utf-8")
        self._script = self._redis.register_script(script)
        self._holders = holders_key(surroundings.release_id)
        self._claims = claims_key(surroundings.release_id)

    async def put_claim(
        self, claim_id: UUID, claim: ClaimBody, response: Response, authorization: Annotated[str, Header()]
    ) -> ClaimView | Response:
        """Take a place in the first of the chosen pools that has enough."""
        try:
            self._passes.check(authorization, claim)
        except RefusedError as refused:
            return refused.answer()
        said, choice = cast(
            "tuple[bytes, int]",
            await self._script(
                keys=[self._holders, self._claims, *(stock_key(pool_id) for pool_id in claim.choices)],
                args=[str(claim_id), *(str(person) for person in claim.people)],
            ),
        )
        if said == b"sold_out":
            return sold_out()
        if said == b"already_booked":
            return already_booked()
        if said == b"known":
            response.status_code = 200
        return ClaimView.of(claim_id, claim.choices[choice], claim.people)

    @asynccontextmanager
    async def lifespan(self, _application: FastAPI) -> AsyncGenerator[None]:
        """Close the connections at the end."""
        yield
        await self._redis.aclose()


def application(surroundings: Surroundings) -> FastAPI:
    """Return the whole service."""
    town = _Town(surroundings)
    made = FastAPI(lifespan=town.lifespan)
    made.add_api_route(
        "/v1/claims/{claim_id}", town.put_claim, methods=["PUT"], status_code=201, response_model=ClaimView
    )
    return made


if __name__ == "__main__":
    told = own_surroundings()
    serve(application(told), told.port)
