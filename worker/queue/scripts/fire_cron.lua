-- Enqueue a cron job for one due time. The hash holds the last one for each line, so that of all workers that
-- come with it, however late, one enqueues it; also after its result has gone. A stock arq worker, which knows nothing
-- of the hash, leaves the lease of a cron job for a minute after its end.
--
-- KEYS queue, payload, result, guard, lease, levels of priority that are in use, line of this level
--      (the queue for none)
-- ARGV id, payload, due time in ms, job and line, level
-- returns 1 when this call enqueued it

-- include priority.lua
local last = redis.call('HGET', KEYS[4], ARGV[4])
if last and tonumber(last) >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[4], ARGV[4], ARGV[3])
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[5]) > 0 then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
if KEYS[7] ~= KEYS[1] then
    stand_in_line(KEYS[6], KEYS[7], ARGV[5], ARGV[3], ARGV[1])
end
return 1
