"""Admits claims to a release. Redis decides quickly; PostgreSQL decides finally.

The way of a claim: `protocol`, with `whole`, or `asgi` (carry HTTP) → `desk` (checks the request and the pass in
memory) → `orders` (packs it) → `admission` (joins the claims of this tick) → `claim.lua` (one call for all of them) →
a loser is answered. A winner goes on to `ledger` (joins the group commit) → `commit_claims_v2` in PostgreSQL → is
answered. `settlement` brings Redis in line with what PostgreSQL decided; `rebuild` makes the state anew from
PostgreSQL; `sweep` finishes what a crash left half done. `differences` finds on what the two disagree (from `sides`).

Nothing here imports an ORM or a web framework: asyncpg, redis, msgspec and the standard library.
"""
