DROP SCHEMA IF EXISTS peer_skip_locked CASCADE;
CREATE SCHEMA peer_skip_locked;

CREATE TABLE peer_skip_locked.place (
    pool_id uuid NOT NULL,
    place_no integer NOT NULL,
    holder_id uuid,
    claim_id uuid,
    booked_at timestamptz,
    PRIMARY KEY (pool_id, place_no),
    UNIQUE (pool_id, holder_id),
    UNIQUE (claim_id, holder_id)
);

CREATE INDEX free_place ON peer_skip_locked.place (pool_id) WHERE holder_id IS NULL;
