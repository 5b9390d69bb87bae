-- The group commit of the gate, version 1. A change of what it takes or answers is a new function, v2, beside this
-- one: during a deployment old and new servers call their own.
--
-- Writes the claims of one tick of one release: whole or not at all, each. Answers one row for each claim:
--
--   in             written now
--   known          this claim id is booked already, with the same sequence number: the same answer again
--   void           this claim id was declared void before (the sweep, or a settled doubt)
--   clash          one of its people would be in two places at once; the claim id is void from now on
--   stale          the gate's epoch is not the release's: nothing was written
--   person_booked  one of its people has a live booking in that pool, under another claim  } the gate and the
--   place_taken    a place has a holder already, or does not exist, or its pool does not   } database contradict
--   differs        this claim id is booked, but under another sequence number              } each other
--   elsewhere      this claim id was used for a claim of another release: a phone's mistake, no contradiction
--   again          it collided only with a claim of this call that was undone: send it alone
CREATE FUNCTION commit_claims_v1(
    p_release uuid,
    p_epoch bigint,
    p_claim uuid[],
    p_account uuid[],
    p_seq bigint[],
    p_decided_at timestamptz[],
    p_fingerprint bytea[],
    p_request jsonb[],
    p_booking uuid[],
    p_booking_claim uuid[],
    p_position smallint[],
    p_person uuid[],
    p_ordinal smallint[],
    p_place_no integer[]
) RETURNS TABLE (claim_id uuid, outcome text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_epoch bigint;
    v_rules_version text;
    v_new uuid[];
    v_undone uuid[];
BEGIN
    -- A rebuild holds this lock alone: no row of an old epoch can be written after one.
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('release:' || p_release::text, 0));

    -- Each statement below takes its own snapshot (READ COMMITTED), so this one sees what the rebuild committed.
    SELECT release.epoch, release.rules_version INTO v_epoch, v_rules_version FROM release WHERE id = p_release;
    IF v_epoch IS DISTINCT FROM p_epoch THEN
        RETURN QUERY SELECT c, 'stale'::text FROM unnest(p_claim) AS c;
        RETURN;
    END IF;

    -- Sorted by id: two workers with the same claims wait for each other in the same order.
    WITH written AS (
        INSERT INTO claim (id, release_id, account_id, acted_by, epoch, seq, state, rules_version, request,
                           fingerprint, decided_at)
        SELECT c.id, p_release, c.account, c.account, p_epoch, c.seq,
               CASE WHEN EXISTS (SELECT FROM unnest(p_booking_claim, p_place_no) AS b (claim_id, place_no)
                                 WHERE b.claim_id = c.id AND b.place_no IS NOT NULL)
                    THEN 'confirmed' ELSE 'waitlisted' END,
               v_rules_version, c.request, c.fingerprint, c.decided_at
        FROM unnest(p_claim, p_account, p_seq, p_decided_at, p_fingerprint, p_request)
             AS c (id, account, seq, decided_at, fingerprint, request)
        ORDER BY c.id
        ON CONFLICT (id) DO NOTHING
        RETURNING id
    )
    SELECT coalesce(array_agg(id), '{}') INTO v_new FROM written;

    -- Sorted by (pool, place): two workers cannot deadlock. The join with `place` leaves out places that do not exist.
    WITH wanted AS (
        SELECT b.*, pool.id AS pool_id, pool.during, c.seq
        FROM unnest(p_booking, p_booking_claim, p_position, p_person, p_ordinal, p_place_no)
             AS b (id, claim_id, position, person_id, ordinal, place_no)
        JOIN unnest(p_claim, p_seq) AS c (id, seq) ON c.id = b.claim_id
        JOIN pool ON pool.release_id = p_release AND pool.ordinal = b.ordinal
        WHERE b.claim_id = ANY (v_new)
    ), written AS (
        INSERT INTO booking (id, claim_id, position, person_id, pool_id, place_no, during, status, wait_seq,
                             rules_version)
        SELECT w.id, w.claim_id, w.position, w.person_id, w.pool_id, w.place_no, w.during,
               CASE WHEN w.place_no IS NULL THEN 'waitlisted' ELSE 'confirmed' END,
               CASE WHEN w.place_no IS NULL THEN w.seq END,
               v_rules_version
        FROM wanted AS w
        LEFT JOIN place ON place.pool_id = w.pool_id AND place.place_no = w.place_no
        WHERE w.place_no IS NULL OR place.place_no IS NOT NULL
        ORDER BY w.pool_id, w.place_no
        ON CONFLICT DO NOTHING
        RETURNING claim_id
    ), counted AS (
        SELECT c.id AS claim_id,
               (SELECT count(*) FROM unnest(p_booking_claim) AS b (claim_id) WHERE b.claim_id = c.id) AS wanted,
               (SELECT count(*) FROM written WHERE written.claim_id = c.id) AS got
        FROM unnest(v_new) AS c (id)
    )
    SELECT coalesce(array_agg(counted.claim_id), '{}') INTO v_undone FROM counted WHERE counted.got < counted.wanted;

    IF v_undone = '{}' THEN
        RETURN QUERY SELECT c, 'in'::text FROM unnest(v_new) AS c;
    ELSE
        -- A claim is whole or not at all: where one of its people did not get in, the others go out again. These rows
        -- were written by this statement and seen by nobody, so no history is lost.
        DELETE FROM booking WHERE booking.claim_id = ANY (v_undone);
        DELETE FROM claim WHERE claim.id = ANY (v_undone);

        RETURN QUERY
        WITH cause AS (
            SELECT b.claim_id,
                   bool_or(pool.id IS NULL OR b.place_no IS NOT NULL AND (
                       NOT EXISTS (SELECT FROM place WHERE place.pool_id = pool.id AND place.place_no = b.place_no)
                       OR EXISTS (SELECT FROM booking AS other
                                  WHERE other.pool_id = pool.id AND other.place_no = b.place_no
                                    AND other.status = 'confirmed'))) AS place_taken,
                   bool_or(EXISTS (SELECT FROM booking AS other
                                   WHERE other.pool_id = pool.id AND other.person_id = b.person_id
                                     AND other.status IN ('confirmed', 'waitlisted'))) AS person_booked,
                   bool_or(b.place_no IS NOT NULL AND EXISTS (
                       SELECT FROM booking AS other
                       WHERE other.person_id = b.person_id AND other.during && pool.during
                         AND other.status = 'confirmed')) AS clash
            FROM unnest(p_booking_claim, p_person, p_ordinal, p_place_no) AS b (claim_id, person_id, ordinal, place_no)
            LEFT JOIN pool ON pool.release_id = p_release AND pool.ordinal = b.ordinal
            WHERE b.claim_id = ANY (v_undone)
            GROUP BY b.claim_id
        ), judged AS (
            SELECT cause.claim_id,
                   CASE WHEN person_booked THEN 'person_booked'
                        WHEN place_taken THEN 'place_taken'
                        WHEN clash THEN 'clash'
                        ELSE 'again' END AS verdict
            FROM cause
        ), tombstone AS (
            -- The first writer of a claim id decides it: a second worker with the same claim must hear the same "no".
            INSERT INTO claim (id, release_id, epoch, state, request, decided_at)
            SELECT judged.claim_id, p_release, p_epoch, 'void', '{"refused": "time_clash"}', clock_timestamp()
            FROM judged WHERE verdict = 'clash'
        )
        SELECT judged.claim_id, judged.verdict FROM judged
        UNION ALL
        SELECT c, 'in' FROM unnest(v_new) AS c WHERE c <> ALL (v_undone);
    END IF;

    RETURN QUERY
    SELECT claim.id,
           CASE WHEN claim.state = 'void' AND claim.request ->> 'refused' = 'time_clash' THEN 'clash'
                WHEN claim.state = 'void' THEN 'void'
                WHEN claim.release_id <> p_release THEN 'elsewhere'
                WHEN claim.seq IS DISTINCT FROM c.seq THEN 'differs'
                ELSE 'known' END
    FROM unnest(p_claim, p_seq) AS c (id, seq)
    JOIN claim ON claim.id = c.id
    WHERE c.id <> ALL (v_new);
END
$$;
