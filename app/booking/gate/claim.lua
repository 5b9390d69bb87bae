-- Admits the claims of one tick to one release, in the order in which they came.
--
-- A script is isolated, but it is not rolled back: everything is decided in local tables first, and written at the end.
-- Only the free maps change on the way. If they and the counts contradict each other, the state is built anew anyway.
--
-- KEYS  1 meta     hash    epoch, identity, opens_ms, closes_ms, person_limit, account_limit, seq, version
--       2 pools    hash    ordinal -> packed pool (see POOL)
--       3 claims   hash    claim id -> packed claim (see records.py)
--       4 people   hash    person id -> packed bookings, one after another (see BOOKED)
--       5 accounts hash    account id -> number of live bookings
--       6 pending  zset    claim id -> deadline, ms: taken here, not yet known to be in PostgreSQL
--       7…  the free map of each pool of ARGV[4], in that order: bit n is set while place n is free
-- ARGV  1 identity of the server as the caller's connection read it
--       2 epoch that the caller believes in
--       3 how long a claim may stay pending, ms
--       4 ordinals (I2 each) of the pools that these claims name
--       5 ids (16 bytes each) of claims that are in PostgreSQL by now
--       6 claims, one after another: see CLAIM_BYTES, then the people (16 bytes each), then the choices (ordinals, I2 each)
--
-- Answers one string: "C" no state, or one that is being made anew, "I" other server, "S" other epoch; or
--   "O" now_ms (I8), then for each claim a code (one letter), the length of what follows (I2), and that:
--   T taken, W waiting, K known, P known and pending: the packed claim
--   M the id was used for another request         X the pass has expired
--   N not open yet: opens for these people at (I8) Z closed
--   B a person is booked there: the holding claim's id, the person, ordinal (I2), place (I4), packed claim
--   L limit reached: "p" and the person, or "a"   F full, for now   G full, finally
--   U it would be B or L, but for claims of which PostgreSQL may still know nothing

local pack, unpack_struct, byte, sub = struct.pack, struct.unpack, string.byte, string.sub

-- id (16), fingerprint (8), account (16), when the pass expires (ms, I8), own delay (ms, I4), together (1) and
-- waitlist (2) in one (B), number of people (B), number of choices (B)
local CLAIM_BYTES = 55
local POOL = '<I4I4I4I4I4I4B' -- free, capacity, waiting, waitlist_limit, pending, lowest byte with a free bit, open
local BOOKED_BYTES = 22 -- ordinal I2, place I4 (0: waiting), claim id
local CLAIM_HEAD_BYTES = 44 -- revision I4, fingerprint 8, account 16, seq I8, decided_ms I8
local STATUS_CONFIRMED, STATUS_WAITING = 1, 2
-- The answers of a letter and nothing more, as most are.
local BARE = {M = 'M\0\0', X = 'X\0\0', Z = 'Z\0\0', F = 'F\0\0', G = 'G\0\0', U = 'U\0\0'}
-- Lua hands over some 8,000 values at once and no more; an even number keeps fields and values together.
local UNPACK_LIMIT = 4000

local meta = redis.call('HMGET', KEYS[1], 'epoch', 'identity', 'opens_ms', 'closes_ms', 'person_limit',
    'account_limit', 'seq', 'version')
-- Without an identity it is being made anew, and nobody may be told anything by it.
if not (meta[1] and meta[2]) then return 'C' end
if meta[2] ~= ARGV[1] then return 'I' end
if meta[1] ~= ARGV[2] then return 'S' end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local opens_ms, closes_ms = tonumber(meta[3]), tonumber(meta[4])
local person_limit, account_limit = tonumber(meta[5]), tonumber(meta[6])
local seq = tonumber(meta[7])

local function split(packed, bytes)
    local parts = {}
    for at = 1, #packed, bytes do parts[#parts + 1] = packed:sub(at, at + bytes - 1) end
    return parts
end

local function read_ordinals(packed)
    local into = {}
    for i = 1, #packed / 2 do
        local low, high = byte(packed, 2 * i - 1, 2 * i)
        into[i] = low + 256 * high
    end
    return into
end

local ordinals, confirmed = read_ordinals(ARGV[4]), split(ARGV[5], 16)

-- The claims of this call: claim n is the nth of each list, its people are persons[first_person[n]] to
-- persons[first_person[n + 1] - 1], and its choices in the same way. Lists, because a table for each claim would cost
-- more than all that a refusal needs besides.
local ids, accounts, starts_at, expires_ms, delay_ms, flags = {}, {}, {}, {}, {}, {}
local persons, first_person, choices, first_choice = {}, {1}, {}, {1}
do
    local packed, at, n, people, wishes = ARGV[6], 1, 0, 0, 0
    local last = #packed
    while at <= last do
        n = n + 1
        starts_at[n], ids[n], accounts[n] = at, sub(packed, at, at + 15), sub(packed, at + 24, at + 39)
        local size, wanted
        expires_ms[n], delay_ms[n], flags[n], size, wanted = unpack_struct('<I8I4BBB', packed, at + 40)
        at = at + CLAIM_BYTES
        for i = people + 1, people + size do
            persons[i] = sub(packed, at, at + 15)
            at = at + 16
        end
        for i = wishes + 1, wishes + wanted do
            local low, high = byte(packed, at, at + 1)
            choices[i] = low + 256 * high
            at = at + 2
        end
        people, wishes = people + size, wishes + wanted
        first_person[n + 1], first_choice[n + 1] = people + 1, wishes + 1
    end
end

local pools, free_key, changed_pools = {}, {}, {}

-- Of a pool that has nothing to give and is owed nothing, no claim can change a count; and in a release that is sold out
-- most pools have the same counts. Such share one table.
local spent = {}

-- Of pools that claims name, `keys` is where those of their free maps begin in KEYS; who has nothing to give needs none.
local function load_pools(wanted, keys)
    if #wanted == 0 then return end
    local packed = redis.call('HMGET', KEYS[2], unpack(wanted))
    for i = 1, #wanted do
        local ordinal, counts = wanted[i], packed[i]
        local pool = spent[counts]
        if not pool then
            -- Part of the state is gone (evicted, say). "Sold out" would be a lie.
            if not counts then error('CONTRADICTION no counts of pool ' .. ordinal) end
            local free, capacity, waiting, waitlist_limit, pending, hint, open = unpack_struct(POOL, counts)
            -- In one go, so that Lua makes it as large as it must be at once.
            pool = {free = free, capacity = capacity, waiting = waiting, waitlist_limit = waitlist_limit,
                pending = pending, hint = hint, open = open}
            if free == 0 and pending == 0 and waiting >= waitlist_limit then
                spent[counts] = pool
            elseif keys then
                free_key[ordinal] = KEYS[keys + i - 1]
            end
        end
        pools[ordinal] = pool
    end
end
load_pools(ordinals, 7)

-- Reads fields of a hash in few commands; what is not there becomes `empty`.
local function read_all(key, fields, into, empty)
    for from = 1, #fields, UNPACK_LIMIT do
        local last = math.min(from + UNPACK_LIMIT - 1, #fields)
        local values = redis.call('HMGET', key, unpack(fields, from, last))
        for i = from, last do into[fields[i]] = values[i - from + 1] or empty end
    end
end

-- Confirmations ride along. One that comes twice, or for a claim that was released, finds nothing pending.
-- They are at most some hundreds (admission.py): few enough for one command each.
if #confirmed > 0 then
    local deadlines, settled, records = redis.call('ZMSCORE', KEYS[6], unpack(confirmed)), {}, {}
    for i, id in ipairs(confirmed) do
        -- The same id may stand there twice.
        if deadlines[i] and records[id] == nil then
            settled[#settled + 1] = id
            records[id] = false
        end
    end
    if #settled > 0 then
        redis.call('ZREM', KEYS[6], unpack(settled))
        read_all(KEYS[3], settled, records, false)
    end
    for _, id in ipairs(settled) do
        local record = records[id]
        if not record then error('CONTRADICTION a claim is pending and not there') end
        for at = CLAIM_HEAD_BYTES + 1, #record, 23 do
            local ordinal, place = unpack_struct('<I2I4', record, at + 16)
            if not pools[ordinal] then load_pools({ordinal}) end
            if place > 0 and record:byte(at + 22) == STATUS_CONFIRMED then
                if pools[ordinal].pending == 0 then error('CONTRADICTION pending claims and pool ' .. ordinal) end
                pools[ordinal].pending = pools[ordinal].pending - 1
                changed_pools[ordinal] = true
            end
        end
    end
end

local record_of, booked_of, count_of = {}, {}, {}
read_all(KEYS[3], ids, record_of, false)
read_all(KEYS[4], persons, booked_of, '')
read_all(KEYS[5], accounts, count_of, 0)

local pending_now = {}
local new_claims, changed_people, changed_accounts = {}, {}, {}

local function is_pending(id) return pending_now[id] or redis.call('ZSCORE', KEYS[6], id) end
local function any_pending() return next(pending_now) ~= nil or redis.call('ZCARD', KEYS[6]) > 0 end

local function booked_in(person, ordinal)
    local booked = booked_of[person]
    -- Most hold nothing.
    if booked == '' then return nil end
    for at = 1, #booked, BOOKED_BYTES do
        local there, place, claim = unpack_struct('<I2I4c16', booked, at)
        if there == ordinal then return place, claim end
    end
end

local function take(ordinal)
    local pool = pools[ordinal]
    local place = redis.call('BITPOS', free_key[ordinal], 1, pool.hint)
    -- The count says there is a free place and the map has none: this state is not to be trusted any more.
    if place < 1 then error('CONTRADICTION free count and free map of pool ' .. ordinal) end
    redis.call('SETBIT', free_key[ordinal], place, 0)
    pool.hint, pool.free, pool.pending = math.floor(place / 8), pool.free - 1, pool.pending + 1
    changed_pools[ordinal] = true
    return place
end

-- What follows takes people and choices as the first and the last of them in their lists.

-- Books nothing: finds for these people the first pool in order of preference that has room for all of them.
-- Returns an ordinal; nil where no pool has room; nil, 'B' and the booking where one of them is booked there already;
-- nil and 'U' where that booking is not settled yet.
local function first_fit(person, last_person, choice, last_choice)
    local size = last_person - person + 1
    for i = choice, last_choice do
        local ordinal = choices[i]
        local pool = pools[ordinal]
        for j = person, last_person do
            local place, holder = booked_in(persons[j], ordinal)
            if place then
                -- Told as a yes, it would be one that PostgreSQL may never hold.
                if is_pending(holder) then return nil, 'U', '' end
                return nil, 'B', holder .. persons[j] .. pack('<I2I4', ordinal, place)
            end
        end
        -- Nobody new passes those who wait.
        if pool and pool.open == 1 and pool.waiting == 0 and pool.free >= size then return ordinal end
    end
    return nil
end

local function has_pending(person)
    local booked = booked_of[person]
    for at = 1, #booked, BOOKED_BYTES do
        if is_pending(sub(booked, at + 6, at + BOOKED_BYTES - 1)) then return true end
    end
    return false
end

-- Returns nothing within the limits; otherwise 'L' and whose limit it is, or 'U' where it may not be reached after all.
local function limit_hit(person, last_person, account)
    for i = person, last_person do
        if #booked_of[persons[i]] / BOOKED_BYTES + 1 > person_limit then
            if has_pending(persons[i]) then return 'U', '' end
            return 'L', 'p' .. persons[i]
        end
    end
    if count_of[account] + last_person - person + 1 > account_limit then
        -- Which claims are the account's is not kept here: any that is pending may be one of them.
        if any_pending() then return 'U', '' end
        return 'L', 'a'
    end
end

-- Finds the pool in which one more person may wait: the first choice whose waiting list has room.
local function waiting_room(choice, last_choice)
    for i = choice, last_choice do
        local pool = pools[choices[i]]
        if pool and pool.open == 1 and pool.waiting < pool.waitlist_limit
            and (pool.free == 0 or pool.waiting > 0) then return choices[i] end
    end
end

-- "Sold out" is final only when nothing can come back by itself: no free place, no claim between Redis and PostgreSQL.
-- For those who would wait, a place in the queue comes back as well, when a waiter's claim turns out to be void.
local function is_final(choice, last_choice, waitlist)
    for i = choice, last_choice do
        local pool = pools[choices[i]]
        if pool and pool.open == 1 and (pool.pending > 0 or pool.free > 0
            or (waitlist and pool.waiting > 0 and any_pending())) then
            return false
        end
    end
    return true
end

-- Books a place for each of these people, or lets a single person wait. Returns what came of it, as records.py has it.
local function enter(n, person, last_person, ordinal, waits)
    local pool, account, entries = pools[ordinal], accounts[n], ''
    for i = person, last_person do
        local place, shown, status = 0, 0, STATUS_WAITING
        if waits then
            pool.waiting = pool.waiting + 1
            shown = pool.waiting
        else
            place = take(ordinal)
            shown, status = place, STATUS_CONFIRMED
        end
        entries = entries .. persons[i] .. pack('<I2I4B', ordinal, shown, status)
        booked_of[persons[i]] = booked_of[persons[i]] .. pack('<I2I4c16', ordinal, place, ids[n])
        changed_people[persons[i]] = true
    end
    changed_pools[ordinal] = true
    count_of[account] = count_of[account] + last_person - person + 1
    changed_accounts[account] = true
    return entries
end

-- Places people of claim n as one group. Returns entries and whether they wait; or nil, why not (a code of the answer)
-- and its detail.
local function place_group(n, person, last_person)
    local choice, last_choice = first_choice[n], first_choice[n + 1] - 1
    local ordinal, why, detail = first_fit(person, last_person, choice, last_choice)
    if why then return nil, why, detail end
    why, detail = limit_hit(person, last_person, accounts[n])
    if why then return nil, why, detail end
    local waits = false
    if not ordinal and flags[n] >= 2 and last_person == person then
        ordinal = waiting_room(choice, last_choice)
        waits = ordinal ~= nil
    end
    if not ordinal then return nil, 'F', '' end
    return enter(n, person, last_person, ordinal, waits), waits
end

-- Places the people of claim n one by one. Returns the same, with what came of all who got in. What is told where
-- nobody did is that something is undecided, or else the first refusal that is not "full", if there is one.
local function place_each(n)
    local all, all_wait, refusal, detail = '', true, nil, nil
    for i = first_person[n], first_person[n + 1] - 1 do
        local entries, why, more = place_group(n, i, i)
        if entries then
            all, all_wait = all .. entries, all_wait and why
        elseif refusal == nil or refusal == 'F' or why == 'U' then
            refusal, detail = why, more
        end
    end
    if all ~= '' then return all, all_wait end
    return nil, refusal, detail
end

-- Returns the answer that needs no look at the stock, or nil: the claim is known, too late or too early.
local function answered_already(n)
    -- Before any test of stock or time: a winner who asks again must hear of the win.
    local known = record_of[ids[n]]
    if known then
        if sub(known, 5, 12) ~= sub(ARGV[6], starts_at[n] + 16, starts_at[n] + 23) then return 'M', '' end
        if is_pending(ids[n]) then return 'P', known end
        return 'K', known
    end
    if now_ms >= expires_ms[n] then return 'X', '' end
    if now_ms < opens_ms + delay_ms[n] then return 'N', pack('<I8', opens_ms + delay_ms[n]) end
    if now_ms >= closes_ms then return 'Z', '' end
end

local function judge(n)
    local code, detail = answered_already(n)
    if code then return code, detail end

    local entries, waits
    if flags[n] % 2 == 1 then
        entries, waits, detail = place_group(n, first_person[n], first_person[n + 1] - 1)
    else
        entries, waits, detail = place_each(n)
    end
    if entries then
        seq = seq + 1
        local fingerprint = sub(ARGV[6], starts_at[n] + 16, starts_at[n] + 23)
        local record = pack('<I4c8c16I8I8', 1, fingerprint, accounts[n], seq, now_ms) .. entries
        record_of[ids[n]], pending_now[ids[n]], new_claims[ids[n]] = record, true, record
        return waits and 'W' or 'T', record
    end
    local refusal = waits
    if refusal == 'B' then
        local holder = sub(detail, 1, 16)
        return 'B', detail .. (record_of[holder] or redis.call('HGET', KEYS[3], holder) or '')
    end
    if refusal == 'F' and is_final(first_choice[n], first_choice[n + 1] - 1, flags[n] >= 2) then return 'G', '' end
    return refusal, detail
end

local answers = {'O', pack('<I8', now_ms)}
for n = 1, #ids do
    -- The count of an account comes as a string from the hash; make it a number once.
    count_of[accounts[n]] = tonumber(count_of[accounts[n]])
    local code, detail = judge(n)
    answers[n + 2] = detail == '' and BARE[code] or code .. pack('<I2', #detail) .. detail
end

-- Write.
local function write_all(key, changed, value_of)
    local flat = {}
    for field in pairs(changed) do
        flat[#flat + 1] = field
        flat[#flat + 1] = value_of(field)
    end
    for from = 1, #flat, UNPACK_LIMIT do
        redis.call('HSET', key, unpack(flat, from, math.min(from + UNPACK_LIMIT - 1, #flat)))
    end
    return #flat > 0
end
write_all(KEYS[3], new_claims, function(id) return new_claims[id] end)
write_all(KEYS[4], changed_people, function(person) return booked_of[person] end)
write_all(KEYS[5], changed_accounts, function(account) return count_of[account] end)
local moved = write_all(KEYS[2], changed_pools, function(ordinal)
    local p = pools[ordinal]
    return pack(POOL, p.free, p.capacity, p.waiting, p.waitlist_limit, p.pending, p.hint, p.open)
end)
if moved then
    redis.call('HSET', KEYS[1], 'seq', string.format('%.0f', seq), 'version', string.format('%.0f', meta[8] + 1))
end
local deadline_ms, deadlines = string.format('%.0f', now_ms + ARGV[3]), {}
for id in pairs(pending_now) do
    deadlines[#deadlines + 1] = deadline_ms
    deadlines[#deadlines + 1] = id
end
for from = 1, #deadlines, UNPACK_LIMIT do
    redis.call('ZADD', KEYS[6], unpack(deadlines, from, math.min(from + UNPACK_LIMIT - 1, #deadlines)))
end

return table.concat(answers)
