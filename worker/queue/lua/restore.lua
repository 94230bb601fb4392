-- Put a job that runs back into a Redis that has lost its data.
--
-- KEYS queue, lease, payload
-- ARGV id, owner, lease in ms, payload, due time in ms
-- returns 1, or 0 where another worker has it by now
if not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then
    return redis.call('GET', KEYS[2]) == ARGV[2] and 1 or 0
end
redis.call('SET', KEYS[3], ARGV[4], 'NX')
redis.call('ZADD', KEYS[1], 'NX', ARGV[5], ARGV[1])
return 1
