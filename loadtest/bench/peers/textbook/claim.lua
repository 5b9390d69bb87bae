-- Takes places out of a pool's stock for the people of one claim: all of them or nobody, each person once in a release.
--
-- KEYS  1 people who have a place (set)   2 claim id -> pool (hash)   3… stock of each pool, in order of preference
-- ARGV  1 claim id   2… people

local known = redis.call('HGET', KEYS[2], ARGV[1])
if known then return {'known', tonumber(known)} end

local people = #ARGV - 1
for i = 2, #ARGV do
    if redis.call('SISMEMBER', KEYS[1], ARGV[i]) == 1 then return {'already_booked', 0} end
end
for i = 3, #KEYS do
    if tonumber(redis.call('GET', KEYS[i]) or 0) >= people then
        redis.call('DECRBY', KEYS[i], people)
        redis.call('SADD', KEYS[1], unpack(ARGV, 2))
        redis.call('HSET', KEYS[2], ARGV[1], i - 3)
        return {'booked', i - 3}
    end
end
return {'sold_out', 0}
