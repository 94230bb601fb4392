-- Put a running job back into a Redis that has lost its data.
--
-- KEYS queue, lease, payload
-- ARGV id, owner, lease in ms, payload
-- returns 1; 0 if another worker has claimed it; or the problems, if the queue is unsound

-- include clock.lua
-- include running_mark.lua
-- include checks.lua
if not has_type(KEYS[1], 'zset') then return {problems} end
if not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) and try('GET', KEYS[2]) ~= ARGV[2] then
    return 0
end
local again = time_ms() + ARGV[3]
redis.call('SET', KEYS[3], ARGV[4], 'NX')
redis.call('ZADD', KEYS[1], again + RUNNING_MARK, ARGV[1])
return 1
