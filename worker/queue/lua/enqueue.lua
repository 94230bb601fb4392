-- Put a job into the queue, once for each id: neither while it waits or runs, nor while its result is known.
--
-- An order to cancel that is left of an earlier run of this id is not for this one.
--
-- KEYS queue, payload, result, cancelled
-- ARGV id, payload, delay in ms, or due time in ms where the next is 1, whether it is
-- returns 1, or 0 where the id is known
if redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then return 0 end
local due = tonumber(ARGV[3])
if ARGV[4] ~= '1' then
    local now = redis.call('TIME')
    due = now[1] * 1000 + math.floor(now[2] / 1000) + due
end
redis.call('SREM', KEYS[4], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[1], due, ARGV[1])
return 1
