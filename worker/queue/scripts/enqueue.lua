-- Enqueue a run once for its id. If a run of that id waits or runs, or its result is known, do nothing.
--
-- A unique job is enqueued once for its key. Its lock holds the id of the run that owns it. The lock counts for a time,
-- or while that run is in the queue, or only while it waits. A requeue does not use this script, so a run is not
-- blocked by its own lock.
--
-- With `replace`, the run replaces the payload and the due time of the waiting run. A command that cancels an earlier
-- run of this id is deleted. A run with a priority is also in the line of its level, and in no other line.
--
-- KEYS queue, cancelled, lock (the queue if there is none: an ACL may allow no other name), levels of priority in use
-- ARGV id, payload, delay in ms, or due time in ms if the next is 1, whether it is; prefixes of payloads, results and
--      leases; 1 to replace; when the lock counts (time, active, waiting), its lifetime in ms; level (0 for none),
--      prefix of lines; weight and flow of a fair run ('' for any other)
-- returns {1 if it was enqueued, 2 if it replaced a run, 0 if its id is known, or -1 if a key is unsound; id of the
--         run, or the problems}

-- include clock.lua
-- include checks.lua
-- include priority.lua
-- include fair.lua
local id, payloads, leases = ARGV[1], ARGV[5], ARGV[7]
local is_unique = KEYS[3] ~= KEYS[1]
if not has_type(KEYS[1], 'zset') then return {-1, problems} end
local due = due_ms(ARGV[3], ARGV[4])
local function take_place(id, is_replaced)
    redis.call('ZADD', KEYS[1], due, id)
    local line = ARGV[11] ~= '0' and ARGV[12] .. ARGV[11] .. ':' .. KEYS[1] or KEYS[1]
    for _, level in ipairs(try('ZRANGE', KEYS[4], 0, -1) or {}) do
        local other = ARGV[12] .. level .. ':' .. KEYS[1]
        if level ~= ARGV[11] then try('ZREM', other, id) end
        if is_replaced then forget_fair(other, id) end
    end
    if line ~= KEYS[1] then add_to_priority(KEYS[4], line, ARGV[11], due, id) end
    if is_replaced then forget_fair(KEYS[1], id) end
    if ARGV[13] ~= '' then add_fair(line, id, ARGV[13], due, time_ms()) end
end
local known = false
if is_unique then
    local holder = try('GET', KEYS[3])
    if holder and holder ~= id then
        local is_there = redis.call('EXISTS', payloads .. holder) == 1
        local runs = redis.call('EXISTS', leases .. holder) == 1
        if ARGV[9] == 'time' or (is_there and (ARGV[9] == 'active' or not runs)) then
            id, known = holder, true
        end
    end
end
local waits = redis.call('EXISTS', payloads .. id) == 1
if known or waits or redis.call('EXISTS', ARGV[6] .. id) == 1 then
    if ARGV[8] == '1' and waits and redis.call('EXISTS', leases .. id) == 0 then
        redis.call('SET', payloads .. id, ARGV[2])
        take_place(id, true)
        return {2, id}
    end
    return {0, id}
end
redis.call('SET', payloads .. id, ARGV[2])  -- first: if Redis is out of memory, it rejects this, and nothing is written
try('SREM', KEYS[2], id)
take_place(id)
if is_unique then redis.call('SET', KEYS[3], id, 'PX', ARGV[10]) end
return {1, id}
