-- Put a job into the queue, once for each id: neither while it waits or runs, nor while its result is known.
--
-- A unique job is put there once for its key: the lock holds the id of the run that has it, and counts for a time, or as
-- long as that run is in the queue (or only as long as nobody runs it). A run that goes back to the queue, drained or to
-- be tried again, never comes here: its own lock cannot keep it out.
-- One that replaces takes the place of the run that waits: its arguments and its due time.
-- An order to cancel that is left of an earlier run of this id is not for this one.
-- One with a priority stands in the line of its level as well (ack_and_claim.lua), and in no other one.
--
-- KEYS queue, cancelled, lock (the queue for none: an ACL admits no other name), levels of priority that are in use
-- ARGV id, payload, delay in ms, or due time in ms where the next is 1, whether it is, prefixes of payload, result, lease,
--      1 to replace, how the lock counts (time, active, waiting), its life in ms, level (0 for none), prefix of lines
-- returns {1 where it was put there, 2 where it took another one's place, 0 where it is known; id of the run}

-- include clock.lua
-- include priority.lua
local id, payloads, leases = ARGV[1], ARGV[5], ARGV[7]
local due = due_ms(ARGV[3], ARGV[4])
local function take_place(id)
    redis.call('ZADD', KEYS[1], due, id)
    for _, level in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
        if level ~= ARGV[11] then redis.call('ZREM', ARGV[12] .. level .. ':' .. KEYS[1], id) end
    end
    if ARGV[11] ~= '0' then
        stand_in_line(KEYS[4], ARGV[12] .. ARGV[11] .. ':' .. KEYS[1], ARGV[11], due, id)
    end
end
local known = false
if KEYS[3] ~= KEYS[1] then
    local holder = redis.call('GET', KEYS[3])
    if holder and holder ~= id then
        local there = redis.call('EXISTS', payloads .. holder) == 1
        local runs = redis.call('EXISTS', leases .. holder) == 1
        if ARGV[9] == 'time' or (there and (ARGV[9] == 'active' or not runs)) then
            id, known = holder, true
        end
    end
end
local waits = redis.call('EXISTS', payloads .. id) == 1
if known or waits or redis.call('EXISTS', ARGV[6] .. id) == 1 then
    if ARGV[8] == '1' and waits and redis.call('EXISTS', leases .. id) == 0 then
        redis.call('SET', payloads .. id, ARGV[2])
        take_place(id)
        return {2, id}
    end
    return {0, id}
end
redis.call('SET', payloads .. id, ARGV[2])  -- first: it is refused where the memory is full, and nothing was done
redis.call('SREM', KEYS[2], id)
take_place(id)
if KEYS[3] ~= KEYS[1] then redis.call('SET', KEYS[3], id, 'PX', ARGV[10]) end
return {1, id}
