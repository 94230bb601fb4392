-- Put an ended run back into its queue. If several calls retry a dead letter, the first one wins.
--
-- KEYS queue, payload, result, attempt, cancelled, dead letters, runs to retry, times of the dead letters
-- ARGV id, payload, 1 if it is a dead letter, which must still exist
-- returns 1; 0 if the dead letter is gone, or its id is in the queue again; or the problems, if a key is unsound

-- include clock.lua
-- include checks.lua
local id = ARGV[1]
local are_sound = has_type(KEYS[1], 'zset')
are_sound = has_type(KEYS[6], 'hash') and are_sound
if not are_sound then return {problems} end
try('SREM', KEYS[7], id)
if ARGV[3] == '1' and (redis.call('ZSCORE', KEYS[1], id) or redis.call('HEXISTS', KEYS[6], id) == 0) then return 0 end
redis.call('HDEL', KEYS[6], id)
try('ZREM', KEYS[8], id)
redis.call('DEL', KEYS[3], KEYS[4])
try('SREM', KEYS[5], id)
redis.call('SET', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[1], time_ms(), id)
return 1
