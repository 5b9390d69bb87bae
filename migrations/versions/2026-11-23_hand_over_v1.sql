-- Gives one free place to the first who waits for it, version 1. Called in the transaction in which the place became
-- free, so that no newcomer can slip in between; also by the rebuild, and for places that the gate has parked.
--
-- A waiter who by now is booked elsewhere at that time cannot take it, and leaves the queue: kept at its head, they would
-- hold up everybody behind them for ever. Nothing is handed over once the session has begun. Answers the id of the claim
-- that got the place, or null. The caller holds the release's lock (shared is enough).
CREATE FUNCTION hand_over_v1(p_pool uuid, p_place_no integer) RETURNS uuid
LANGUAGE plpgsql
AS $$
DECLARE
    v_waiter record;
BEGIN
    -- One hand-over at a time in a pool, or two would choose the same waiter and the order would depend on luck.
    PERFORM 1 FROM pool
    WHERE id = p_pool AND state = 'open' AND lower(during) > clock_timestamp()
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM booking WHERE pool_id = p_pool AND place_no = p_place_no AND status = 'confirmed') THEN
        RETURN NULL;
    END IF;

    FOR v_waiter IN
        SELECT id, claim_id FROM booking
        WHERE pool_id = p_pool AND status = 'waitlisted'
        ORDER BY wait_seq, position
    LOOP
        BEGIN
            UPDATE booking SET status = 'confirmed', place_no = p_place_no, changed_at = clock_timestamp()
            WHERE id = v_waiter.id AND status = 'waitlisted';
            IF FOUND THEN
                UPDATE claim SET state = 'confirmed', revision = revision + 1 WHERE id = v_waiter.claim_id;
                RETURN v_waiter.claim_id;
            END IF;
        EXCEPTION WHEN exclusion_violation THEN
            UPDATE booking SET status = 'cancelled', cancelled_reason = 'time_clash', changed_at = clock_timestamp()
            WHERE id = v_waiter.id;
            UPDATE claim SET revision = revision + 1,
                             state = CASE WHEN EXISTS (SELECT FROM booking WHERE claim_id = claim.id
                                                       AND status = 'confirmed') THEN 'confirmed'
                                          WHEN EXISTS (SELECT FROM booking WHERE claim_id = claim.id
                                                       AND status = 'waitlisted') THEN 'waitlisted'
                                          ELSE 'cancelled' END
            WHERE id = v_waiter.claim_id;
        END;
    END LOOP;
    RETURN NULL;
END
$$;
