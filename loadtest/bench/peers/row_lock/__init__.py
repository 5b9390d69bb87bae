"""The classic: a counter for each pool in PostgreSQL, whose row every winner locks."""

from loadtest.bench.peers.on_postgres import OnPostgres

ROW_LOCK = OnPostgres(
    name="row_lock",
    what="Starlette, asyncpg: a transaction for each request takes 1 from the pool's counter and inserts the booking",
    fill="INSERT INTO peer_row_lock.pool_counter (id, places_left) VALUES ($1, $2)",
    count_winners="SELECT count(*) FROM peer_row_lock.booking",
)
