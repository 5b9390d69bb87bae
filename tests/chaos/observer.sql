-- What the checker knows of the past: every change of a booking, and the epoch that each claim met, in the order in
-- which they were made. What is rolled back leaves no trace here, as it should.
CREATE TABLE seen_booking (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    booking_id uuid NOT NULL,
    claim_id uuid NOT NULL,
    pool_id uuid NOT NULL,
    person_id uuid NOT NULL,
    place_no integer,
    status text NOT NULL
);

CREATE TABLE seen_claim (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    claim_id uuid NOT NULL,
    claim_epoch bigint NOT NULL,
    release_epoch bigint NOT NULL
);

CREATE TABLE seen_epoch (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    release_id uuid NOT NULL,
    before bigint NOT NULL,
    after bigint NOT NULL
);

CREATE FUNCTION see_booking() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen_booking (booking_id, claim_id, pool_id, person_id, place_no, status)
    VALUES (NEW.id, NEW.claim_id, NEW.pool_id, NEW.person_id, NEW.place_no, NEW.status);
    RETURN NULL;
END
$$;

-- The statement in a trigger takes a snapshot of its own: it sees an epoch that a rebuild has committed meanwhile.
CREATE FUNCTION see_claim() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen_claim (claim_id, claim_epoch, release_epoch)
    SELECT NEW.id, NEW.epoch, release.epoch FROM release WHERE release.id = NEW.release_id;
    RETURN NULL;
END
$$;

CREATE FUNCTION see_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen_epoch (release_id, before, after) VALUES (NEW.id, OLD.epoch, NEW.epoch);
    RETURN NULL;
END
$$;

CREATE TRIGGER see_booking AFTER INSERT OR UPDATE OF status, place_no ON booking
    FOR EACH ROW EXECUTE FUNCTION see_booking();
CREATE TRIGGER see_claim AFTER INSERT ON claim FOR EACH ROW EXECUTE FUNCTION see_claim();
CREATE TRIGGER see_epoch AFTER UPDATE OF epoch ON release FOR EACH ROW EXECUTE FUNCTION see_epoch();
