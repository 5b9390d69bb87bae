"""The better classic: every place is a row in PostgreSQL, and each winner locks one that nobody else has locked."""

from loadtest.bench.peers.on_postgres import OnPostgres

SKIP_LOCKED = OnPostgres(
    name="skip_locked",
    what="Starlette, asyncpg: a transaction for each request finds a free place with SKIP LOCKED and updates it",
    fill="INSERT INTO peer_skip_locked.place (pool_id, place_no) SELECT $1, generate_series(1, $2::integer)",
    count_winners="SELECT count(*) FROM peer_skip_locked.place WHERE holder_id IS NOT NULL",
)
