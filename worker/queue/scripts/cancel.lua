-- Cancel a waiting or running run of the queue. For an unknown id, nothing is written: the command would remain and
-- cancel the next run of that id. A deferred run becomes due now, so that it ends now. A running run keeps its due
-- time, at which its lease expires.
--
-- KEYS queue, cancelled, lease
-- ARGV id
-- returns 1; 0 if the queue does not have the run; or the problems, if nothing could be done

-- include clock.lua
-- include checks.lua
local are_sound = has_type(KEYS[1], 'zset')
are_sound = has_type(KEYS[2], 'set') and are_sound
if not are_sound then return {problems} end
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due then return 0 end
redis.call('SADD', KEYS[2], ARGV[1])
local now_ms = time_ms()
if tonumber(due) > now_ms and redis.call('EXISTS', KEYS[3]) == 0 then redis.call('ZADD', KEYS[1], now_ms, ARGV[1]) end
return 1
