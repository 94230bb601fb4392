-- Enqueue a cron job for one due time, once.
--
-- The hash holds the last due time of each cron line, so that only one worker enqueues it, even if another worker is
-- late and the result has expired. A stock arq worker does not use the hash; it keeps the lease of a cron job for a
-- minute after its end. A last due time that is not a number, or is more than a day ahead, was not written by a worker.
--
-- A unique job is not enqueued while its lock counts (see enqueue.lua): this due time is skipped.
--
-- KEYS queue, payload, result, last due times, lease, levels of priority in use, line of this level (the queue for
--      none), lock (the queue for none)
-- ARGV id, payload, due time in ms, job and line, level; prefixes of payloads and leases; when the lock counts, its
--      lifetime in ms
-- returns {1 if this call enqueued it, 0 if it was enqueued before, or -1 if a key is unsound; problems}

-- include clock.lua
-- include checks.lua
-- include priority.lua
local are_sound = has_type(KEYS[1], 'zset')
are_sound = has_type(KEYS[4], 'hash') and are_sound
if not are_sound then return {-1, problems} end
local due = tonumber(ARGV[3])
local text = redis.call('HGET', KEYS[4], ARGV[4])
if text then
    local last = tonumber(text)
    if not last or last ~= last or last > math.max(time_ms(), due) + 86400000 then
        note(KEYS[4], 'value', ARGV[4] .. ' = ' .. string.sub(text, 1, 100))
    elseif last >= due then
        return {0, problems}
    end
end
redis.call('HSET', KEYS[4], ARGV[4], ARGV[3])
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[5]) > 0 then return {0, problems} end
if KEYS[8] ~= KEYS[1] then
    local holder = try('GET', KEYS[8])
    if holder and holder ~= ARGV[1] then
        local is_there = redis.call('EXISTS', ARGV[6] .. holder) == 1
        local runs = redis.call('EXISTS', ARGV[7] .. holder) == 1
        if ARGV[8] == 'time' or (is_there and (ARGV[8] == 'active' or not runs)) then return {0, problems} end
    end
    redis.call('SET', KEYS[8], ARGV[1], 'PX', ARGV[9])
end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
if KEYS[7] ~= KEYS[1] then add_to_priority(KEYS[6], KEYS[7], ARGV[5], ARGV[3], ARGV[1]) end
return {1, problems}
