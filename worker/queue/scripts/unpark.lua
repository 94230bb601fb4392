-- Make parked runs due whose pause was removed, or that are cancelled.
--
-- A claimed run that is paused is parked (requeue.lua): due in about an hour, so that workers do not claim it
-- repeatedly. The hash of the pause holds its queue and that due time, by its id. If the due time has changed, the run
-- was cancelled, retried or enqueued again in the meantime, and is not changed here.
--
-- KEYS hash of the pause, set of the pauses with parked runs
-- ARGV entry of worker:paused, prefix of levels of priority, prefix of lines, most runs (0 for the given ids), ids
-- returns how many runs are still parked for this pause

-- include clock.lua
-- include checks.lua
-- include fair.lua
if not has_type(KEYS[1], 'hash') or not has_type(KEYS[2], 'set') then return 0 end
if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('SREM', KEYS[2], ARGV[1])
    return 0
end
local now_ms = time_ms()
local entries = {}
if tonumber(ARGV[4]) > 0 then
    entries = redis.call('HSCAN', KEYS[1], 0, 'COUNT', ARGV[4])[2]
else
    for at = 5, #ARGV do
        local value = redis.call('HGET', KEYS[1], ARGV[at])
        if value then
            entries[#entries + 1] = ARGV[at]
            entries[#entries + 1] = value
        end
    end
end
for at = 1, #entries, 2 do
    local id, due, queue = entries[at], string.match(entries[at + 1], '^(%d+) (.*)$')
    if queue and try('ZSCORE', queue, id) == due then
        redis.call('ZADD', queue, 'XX', now_ms, id)
        move_fair(queue, id, now_ms)
        for _, level in ipairs(try('ZRANGE', ARGV[2] .. queue, 0, -1) or {}) do
            local line = ARGV[3] .. level .. ':' .. queue
            try('ZADD', line, 'XX', now_ms, id)
            move_fair(line, id, now_ms)
        end
    end
    redis.call('HDEL', KEYS[1], id)
end
local left = redis.call('HLEN', KEYS[1])
if left == 0 then redis.call('SREM', KEYS[2], ARGV[1]) end
return left
