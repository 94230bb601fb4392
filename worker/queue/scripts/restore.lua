-- Put a job that runs back into a Redis that has lost its data.
--
-- KEYS queue, lease, payload
-- ARGV id, owner, lease in ms, payload
-- returns 1, or 0 where another worker has it by now

-- include clock.lua
-- include running_mark.lua
if not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) and redis.call('GET', KEYS[2]) ~= ARGV[2] then
    return 0
end
local again = time_ms() + ARGV[3]
redis.call('SET', KEYS[3], ARGV[4], 'NX')
redis.call('ZADD', KEYS[1], again + RUNNING_MARK, ARGV[1])
return 1
