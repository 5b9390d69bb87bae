DROP SCHEMA IF EXISTS peer_row_lock CASCADE;
CREATE SCHEMA peer_row_lock;

CREATE TABLE peer_row_lock.pool_counter (
    id uuid PRIMARY KEY,
    places_left integer NOT NULL CHECK (places_left >= 0)
);

CREATE TABLE peer_row_lock.booking (
    claim_id uuid NOT NULL,
    person_id uuid NOT NULL,
    pool_id uuid NOT NULL REFERENCES peer_row_lock.pool_counter,
    booked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (claim_id, person_id),
    UNIQUE (pool_id, person_id)
);
