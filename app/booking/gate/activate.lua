-- Puts a rebuilt state in force. The state itself was loaded before, under keys that carry its epoch and that nobody
-- reads; this sets the one key that says which epoch counts, last, and refuses to go backwards.
--
-- KEYS  1 meta  then the keys of the new epoch, to be kept for good (they were loaded with an expiry)
-- ARGV  1 identity as read by the connection that activates  2 the new epoch  3 identity as read by the connection that
--       loaded  4… field, value, … of meta
-- Answers "O", "S" if this epoch or a later one is in force already, "I" if the state was loaded into another server, or
-- "C" if a key of the new epoch is not there.

if ARGV[1] ~= ARGV[3] then return 'I' end
local current = redis.call('HGET', KEYS[1], 'epoch')
if current and tonumber(current) >= tonumber(ARGV[2]) then return 'S' end
-- An epoch that was loaded in part (its keys expired, or were flushed in between) must not come into force.
for i = 2, #KEYS do
    if redis.call('EXISTS', KEYS[i]) == 0 then return 'C' end
end
for i = 2, #KEYS do redis.call('PERSIST', KEYS[i]) end
redis.call('DEL', KEYS[1])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'identity', ARGV[1], 'epoch', ARGV[2], 'built_ms', string.format('%.0f', now_ms),
    unpack(ARGV, 4))
return 'O'
