-- Brings the gate in line with what PostgreSQL has decided about some claims of one release.
--
-- Everything here can be repeated and comes to the same: a release is undone only while the claim is still pending, and
-- an update is taken only when its revision is newer than the one the gate has.
--
-- KEYS  1 meta  2 pools  3 claims  4 people  5 accounts  6 pending  7 parked (hash: packed ordinal, place -> since ms)
--       8 ahead    hash    packed ordinal, place -> how many holders of it are still to be heard of as having given it back
--       9…  the free map of each of the release's pools, by ordinal from 0
-- ARGV  1 identity  2 epoch
--       3 ids (16 bytes each) of claims that PostgreSQL holds as void
--       4 what PostgreSQL holds, one claim after another: id, revision (I4), bookings (B), then the bookings, packed as in
--         a claim: person, ordinal (I2), place or position (I4), status (B)
--       5 places to be free again if nobody waits any more: ordinal (I2), place (I4) each
-- Answers "C", "I", "S" as claim.lua does; or "O" and the number (I4) of updates for claims that are not known here.

local POOL = '<I4I4I4I4I4I4B'
local BOOKED_BYTES, CLAIM_HEAD_BYTES, ENTRY_BYTES = 22, 44, 23
local CONFIRMED, WAITING = 1, 2
local pack, unpack_struct = struct.pack, struct.unpack

local meta = redis.call('HMGET', KEYS[1], 'epoch', 'identity', 'version')
if not (meta[1] and meta[2]) then return 'C' end
if meta[2] ~= ARGV[1] then return 'I' end
if meta[1] ~= ARGV[2] then return 'S' end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local pools = {}
local function pool(ordinal)
    if not pools[ordinal] then
        local packed, p = redis.call('HGET', KEYS[2], ordinal), {}
        if not packed then error('CONTRADICTION no counts of pool ' .. ordinal) end
        p.free, p.capacity, p.waiting, p.waitlist_limit, p.pending, p.hint, p.open =
            unpack_struct(POOL, packed)
        pools[ordinal] = p
    end
    return pools[ordinal]
end

local function free_key(ordinal) return KEYS[9 + ordinal] end

local function entries_in(record, from)
    local entries = {}
    for at = from, #record, ENTRY_BYTES do
        local person, ordinal, place, status = unpack_struct('<c16I2I4B', record, at)
        entries[#entries + 1] = {person, ordinal, place, status}
    end
    return entries
end

-- Rewrites one person's packed bookings: `place` nil takes the booking out.
local function rebook(person, ordinal, claim, place)
    local booked, kept = redis.call('HGET', KEYS[4], person) or '', {}
    for at = 1, #booked, BOOKED_BYTES do
        local there, there_place, there_claim = unpack_struct('<I2I4c16', booked, at)
        if there ~= ordinal or there_claim ~= claim then
            kept[#kept + 1] = booked:sub(at, at + BOOKED_BYTES - 1)
        elseif place then
            kept[#kept + 1] = pack('<I2I4c16', ordinal, place, claim)
        end
    end
    if #kept == 0 then redis.call('HDEL', KEYS[4], person)
    else redis.call('HSET', KEYS[4], person, table.concat(kept)) end
end

local function count_down(account)
    if redis.call('HINCRBY', KEYS[5], account, -1) <= 0 then redis.call('HDEL', KEYS[5], account) end
end

local function set_free(ordinal, place)
    if redis.call('SETBIT', free_key(ordinal), place, 1) == 0 then
        local p = pool(ordinal)
        p.free, p.hint = p.free + 1, math.min(p.hint, math.floor(place / 8))
    end
end

-- Places that nobody holds at this moment of the script, until it is known who gets them.
local loose = {}
local function let_go(ordinal, place)
    local key = pack('<I2I4', ordinal, place)
    if redis.call('HEXISTS', KEYS[8], key) == 0 then
        loose[key] = {ordinal, place}
    elseif redis.call('HINCRBY', KEYS[8], key, -1) == 0 then
        redis.call('HDEL', KEYS[8], key)
    end
end

-- Takes a place for a claim to which PostgreSQL gave it. News comes in any order: where its last holder has not been heard
-- of yet, that claim's giving back, when it comes, must not free the place under its new holder.
local function take(ordinal, place)
    local key = pack('<I2I4', ordinal, place)
    if loose[key] then
        loose[key] = nil
    elseif redis.call('HDEL', KEYS[7], key) == 1 then
        pool(ordinal).pending = pool(ordinal).pending - 1
    elseif redis.call('SETBIT', free_key(ordinal), place, 0) == 1 then
        pool(ordinal).free = pool(ordinal).free - 1
    else
        redis.call('HINCRBY', KEYS[8], key, 1)
    end
end

local function no_longer_pending(id, entries)
    if redis.call('ZREM', KEYS[6], id) == 0 then return false end
    for _, entry in ipairs(entries) do
        if entry[4] == CONFIRMED then pool(entry[2]).pending = pool(entry[2]).pending - 1 end
    end
    return true
end

for at = 1, #ARGV[3], 16 do
    local id = ARGV[3]:sub(at, at + 15)
    local record = redis.call('HGET', KEYS[3], id)
    local entries = record and entries_in(record, CLAIM_HEAD_BYTES + 1)
    if record and no_longer_pending(id, entries) then
        local account = record:sub(13, 28)
        for _, entry in ipairs(entries) do
            local person, ordinal, place, status = unpack(entry)
            rebook(person, ordinal, id, nil)
            count_down(account)
            if status == CONFIRMED then let_go(ordinal, place)
            else pool(ordinal).waiting = pool(ordinal).waiting - 1 end
        end
        redis.call('HDEL', KEYS[3], id)
    end
end

local unknown, news, at = 0, {}, 1
while at <= #ARGV[4] do
    local id, revision, bookings = unpack_struct('<c16I4B', ARGV[4], at)
    local packed = ARGV[4]:sub(at + 21, at + 20 + bookings * ENTRY_BYTES)
    at = at + 21 + bookings * ENTRY_BYTES
    local record = redis.call('HGET', KEYS[3], id)
    if not record then
        unknown = unknown + 1
    elseif unpack_struct('<I4', record) < revision then
        local before = entries_in(record, CLAIM_HEAD_BYTES + 1)
        no_longer_pending(id, before)
        news[#news + 1] = {id, record, before, entries_in(packed, 1)}
        redis.call('HSET', KEYS[3], id, pack('<I4', revision) .. record:sub(5, CLAIM_HEAD_BYTES) .. packed)
    end
end
-- First everything that is given back, then what is handed on: a place passes from one claim to the other in one call.
for _, new in ipairs(news) do
    local id, account = new[1], new[2]:sub(13, 28)
    for i, was in ipairs(new[3]) do
        local person, ordinal, place, status = unpack(was)
        local now = new[4][i][4]
        if (status == CONFIRMED or status == WAITING) and now ~= status then
            if status == CONFIRMED then let_go(ordinal, place)
            else pool(ordinal).waiting = pool(ordinal).waiting - 1 end
            if now ~= CONFIRMED then
                rebook(person, ordinal, id, nil)
                count_down(account)
            end
        end
    end
end
for _, new in ipairs(news) do
    for i, is in ipairs(new[4]) do
        if is[4] == CONFIRMED and new[3][i][4] ~= CONFIRMED then
            take(is[2], is[3])
            rebook(is[1], is[2], new[1], is[3])
        end
    end
end

for from = 1, #ARGV[5], 6 do
    local ordinal, number = unpack_struct('<I2I4', ARGV[5], from)
    if pool(ordinal).waiting == 0 and redis.call('HDEL', KEYS[7], pack('<I2I4', ordinal, number)) == 1 then
        pool(ordinal).pending = pool(ordinal).pending - 1
        set_free(ordinal, number)
    end
end

-- Where somebody waits, a place is not thrown to the crowd: it is parked until PostgreSQL has given it to the first.
for key, place in pairs(loose) do
    local p = pool(place[1])
    if p.waiting > 0 then
        redis.call('HSET', KEYS[7], key, string.format('%.0f', now_ms))
        p.pending = p.pending + 1
    else
        set_free(place[1], place[2])
    end
end

local flat = {}
for ordinal, p in pairs(pools) do
    flat[#flat + 1] = ordinal
    flat[#flat + 1] = pack(POOL, p.free, p.capacity, p.waiting, p.waitlist_limit, p.pending, p.hint, p.open)
end
if #flat > 0 then
    redis.call('HSET', KEYS[2], unpack(flat))
    redis.call('HSET', KEYS[1], 'version', string.format('%.0f', meta[3] + 1))
end
return 'O' .. pack('<I4', unknown)
