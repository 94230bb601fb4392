-- Enqueue a cron job for one due time, once.
--
-- The hash holds the last due time of each cron line, so that only one worker enqueues it, even if another worker is
-- late and the result has expired. During a deploy, older workers use a field without the application's name; it is
-- read as well, so that no due time is enqueued twice. A stock arq worker does not use the hash; it keeps the lease of a cron job for a
-- minute after its end. A last due time that is not a number, or is more than a day ahead, was not written by a worker.
--
-- A unique job is not enqueued while its lock counts (see enqueue.lua): this due time is skipped.
--
-- KEYS queue, payload, result, last due times, lease, levels of priority in use, line of this level (the queue for
--      none), lock (the queue for none)
-- ARGV id, payload, due time in ms, field of the last due times, level; prefixes of payloads and leases; when the lock counts, its
--      lifetime in ms; the field of older workers, without the application ('' for none)
-- returns {1 if this call enqueued it, 0 if it was enqueued before, or -1 if a key is unsound; problems}

-- include clock.lua
-- include checks.lua
-- include priority.lua
local are_sound = has_type(KEYS[1], 'zset')
are_sound = has_type(KEYS[4], 'hash') and are_sound
if not are_sound then return {-1, problems} end
local due = tonumber(ARGV[3])
local latest = math.max(time_ms(), due) + 86400000
for _, field in ipairs({ARGV[4], ARGV[10]}) do
    local text = field ~= '' and redis.call('HGET', KEYS[4], field)
    if text then
        local last = string.match(text, '^%d+$') and tonumber(text)
        if not last or last > latest then
            note(KEYS[4], 'value', field .. ' = ' .. string.sub(text, 1, 100))
        elseif last >= due then
            return {0, problems}
        end
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
