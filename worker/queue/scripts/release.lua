-- Release a place under a limit. The run that has waited longest becomes due now, and keeps its priority.
--
-- A place belongs to one claim of one owner. If a worker was frozen and another worker has taken over the run, or has
-- returned it to the first worker, which has claimed it again, then the first claim releases nothing.
--
-- KEYS running runs, waiting runs, queue, levels of priority in use, lease
-- ARGV id, prefix of lines of priority, owner ('' for any), number of the claim (0 for any)
-- returns the id of the run that is due, or nothing

-- include clock.lua
-- include checks.lua
-- include fair.lua
if not has_type(KEYS[1], 'zset') or not has_type(KEYS[2], 'zset') or not has_type(KEYS[3], 'zset') then return false end
local holder = try('GET', KEYS[5])
if ARGV[3] ~= '' and holder and holder ~= ARGV[3] then return false end
local number = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ARGV[4] ~= '0' and number and tonumber(number) ~= tonumber(ARGV[4]) then return false end
redis.call('ZREM', KEYS[1], ARGV[1])
local now_ms = time_ms()
while true do
    local first = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
    if not first then return false end
    redis.call('ZREM', KEYS[2], first)
    if redis.call('ZSCORE', KEYS[3], first) then
        redis.call('ZADD', KEYS[3], 'XX', now_ms, first)
        move_fair(KEYS[3], first, now_ms)
        for _, level in ipairs(try('ZRANGE', KEYS[4], 0, -1) or {}) do
            local line = ARGV[2] .. level .. ':' .. KEYS[3]
            try('ZADD', line, 'XX', now_ms, first)
            move_fair(line, first, now_ms)
        end
        return first
    end
end
