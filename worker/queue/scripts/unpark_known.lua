-- Make runs due whose job no worker knew, now that a worker knows it.
--
-- A run of an unknown job is parked (requeue.lua): a sorted set of its job and queue holds its due time, by its id. If
-- the due time has changed, the run was claimed, cancelled or enqueued again in the meantime, and is not changed here.
--
-- KEYS runs that wait for the job, queue, parked runs of the queue, levels of priority in use
-- ARGV prefix of lines, most runs
-- returns how many runs still wait for the job

-- include clock.lua
-- include checks.lua
-- include fair.lua
if not has_type(KEYS[1], 'zset') or not has_type(KEYS[2], 'zset') then return 0 end
local now_ms = time_ms()
local entries = redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1, 'WITHSCORES')
local levels = try('ZRANGE', KEYS[4], 0, -1) or {}
for at = 1, #entries, 2 do
    local id = entries[at]
    if redis.call('ZSCORE', KEYS[2], id) == entries[at + 1] then
        redis.call('ZADD', KEYS[2], 'XX', now_ms, id)
        move_fair(KEYS[2], id, now_ms)
        for _, level in ipairs(levels) do
            local line = ARGV[1] .. level .. ':' .. KEYS[2]
            try('ZADD', line, 'XX', now_ms, id)
            move_fair(line, id, now_ms)
        end
    end
    redis.call('ZREM', KEYS[1], id)
    try('ZREM', KEYS[3], id)
end
return redis.call('ZCARD', KEYS[1])
