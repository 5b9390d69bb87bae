-- Takes out of Redis what is no longer needed of one epoch of a release. Whoever needs it later finds nothing, and has
-- it made anew from PostgreSQL, as after a loss of Redis.
--
-- KEYS  1 meta  2 pending of that epoch  3… keys of that epoch
-- ARGV  1 identity  2 the epoch  3 how long a state in force is kept after its release closed, or after it was built, ms;
--       empty: leave it, whatever its age
--       4 how long keys of an epoch that is not in force may stay, seconds
-- Answers "O" the state in force is gone, "K" it is kept, "P" it is kept because claims are pending, "I" it was built on
-- another server; or "E" for an epoch that is not in force: its keys go by themselves now.

local meta = redis.call('HMGET', KEYS[1], 'epoch', 'identity', 'closes_ms', 'built_ms')
if meta[1] ~= ARGV[2] then
    -- Left behind by a rebuild that died, or about to come into force: that makes them stay.
    for i = 2, #KEYS do
        if redis.call('TTL', KEYS[i]) == -1 then redis.call('EXPIRE', KEYS[i], ARGV[4]) end
    end
    return 'E'
end
if ARGV[3] == '' then return 'K' end
if meta[2] ~= ARGV[1] then return 'I' end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
-- Counted from the building too: however often somebody asks after an old release, it is made anew once in that time.
local since_ms = math.max(tonumber(meta[3]), tonumber(meta[4] or 0))
if now_ms < since_ms + ARGV[3] then return 'K' end
-- Whether PostgreSQL has these is not known. A phone that asks again must find its claim, not a closed release.
if redis.call('ZCARD', KEYS[2]) > 0 then return 'P' end
redis.call('UNLINK', unpack(KEYS))
return 'O'
