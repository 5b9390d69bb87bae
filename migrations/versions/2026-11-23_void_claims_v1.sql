-- Settles claims whose fate is unknown, by writing: the insert waits for whoever is writing the same id, and so tells
-- the truth where a SELECT could not. Answers `void` (nobody booked it, and now nobody can), `known` (it is booked),
-- or `stale` (a rebuild has settled everything of that epoch). An id that a phone has used for a claim of another release
-- can never be booked in this one, so it is void here.
CREATE FUNCTION void_claims_v1(p_release uuid, p_epoch bigint, p_claim uuid[])
RETURNS TABLE (claim_id uuid, outcome text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_epoch bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('release:' || p_release::text, 0));
    SELECT release.epoch INTO v_epoch FROM release WHERE id = p_release;
    IF v_epoch IS DISTINCT FROM p_epoch THEN
        RETURN QUERY SELECT c, 'stale'::text FROM unnest(p_claim) AS c;
        RETURN;
    END IF;

    INSERT INTO claim (id, release_id, epoch, state, decided_at)
    SELECT c, p_release, p_epoch, 'void', clock_timestamp() FROM unnest(p_claim) AS c ORDER BY c
    ON CONFLICT (id) DO NOTHING;

    RETURN QUERY
    SELECT claim.id, CASE WHEN claim.state = 'void' OR claim.release_id <> p_release THEN 'void' ELSE 'known' END
    FROM claim WHERE claim.id = ANY (p_claim);
END
$$;
