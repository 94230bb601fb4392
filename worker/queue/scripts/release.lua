-- A job gives its place under a limit back, and the first one in line is due now, with the priority that it has.
--
-- KEYS who runs, who stands in line, queue, levels of priority that are in use
-- ARGV id, prefix of lines of priority
-- returns the id of the one that is due, or nothing

-- include clock.lua
redis.call('ZREM', KEYS[1], ARGV[1])
local now_ms = time_ms()
while true do
    local first = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
    if not first then return false end
    redis.call('ZREM', KEYS[2], first)
    if redis.call('ZSCORE', KEYS[3], first) then
        redis.call('ZADD', KEYS[3], 'XX', now_ms, first)
        for _, level in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
            redis.call('ZADD', ARGV[2] .. level .. ':' .. KEYS[3], 'XX', now_ms, first)
        end
        return first
    end
end
