-- Make parked runs due: the order to pause them has been taken back, or they are cancelled.
--
-- A paused run that was claimed is parked (requeue.lua): due in about an hour, so that nobody claims it again and again.
-- The hash of the order holds its queue and that due time, by its id. A run whose due time is another one by now was
-- cancelled, retried or enqueued again meanwhile, and is left alone.
--
-- KEYS hash of the order, set of the orders that have runs parked
-- ARGV order, prefix of levels of priority, prefix of lines, how many runs at most (0: those that follow), ids
-- returns how many runs are still parked for this order

-- include clock.lua
-- include checks.lua
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
        for _, level in ipairs(try('ZRANGE', ARGV[2] .. queue, 0, -1) or {}) do
            try('ZADD', ARGV[3] .. level .. ':' .. queue, 'XX', now_ms, id)
        end
    end
    redis.call('HDEL', KEYS[1], id)
end
local left = redis.call('HLEN', KEYS[1])
if left == 0 then redis.call('SREM', KEYS[2], ARGV[1]) end
return left
