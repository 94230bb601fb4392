-- Order a run to end: one that the queue has, whether it waits or runs. An order for any other id would stay, and end the
-- next run of that id. A deferred one is due now, so that it ends now; one that runs is left where its lease put it.
--
-- KEYS queue, cancelled, lease
-- ARGV id
-- returns 1, or 0 where the queue does not have it

-- include clock.lua
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due then return 0 end
redis.call('SADD', KEYS[2], ARGV[1])
local now_ms = time_ms()
if tonumber(due) > now_ms and redis.call('EXISTS', KEYS[3]) == 0 then redis.call('ZADD', KEYS[1], now_ms, ARGV[1]) end
return 1
