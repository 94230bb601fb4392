-- Put an ended run back into its queue; of a dead letter, whoever comes first takes it.
--
-- KEYS queue, payload, result, try, cancelled, dead, retry, times of the dead
-- ARGV id, payload, 1 where it is a dead letter, which has to be there still
-- returns 1, or 0 where the letter has gone, or its id is in the queue again

-- include clock.lua
local id = ARGV[1]
redis.call('SREM', KEYS[7], id)
if ARGV[3] == '1' and (redis.call('ZSCORE', KEYS[1], id) or redis.call('HEXISTS', KEYS[6], id) == 0) then return 0 end
redis.call('HDEL', KEYS[6], id)
redis.call('ZREM', KEYS[8], id)
redis.call('DEL', KEYS[3], KEYS[4])
redis.call('SREM', KEYS[5], id)
redis.call('SET', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[1], time_ms(), id)
return 1
