-- A job goes back into the queue: for another try, drained, paused, or unknown to this worker.
--
-- It keeps its place in a line of priority. What another worker has taken and ended is not put back: there is a result.
-- The lease goes first: a Redis whose memory is full lets a script go on that has begun to write.
--
-- KEYS queue, lease, payload, try, levels of priority that are in use, result
-- ARGV id, owner, delay in ms, 1 when this claim is not to count as a try, payload (a Redis may have lost it; a run in
--      the ledger says so there), prefix of lines
-- returns 1, or 0 where another worker has the job, or has ended it

-- include clock.lua
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] or not holder and redis.call('EXISTS', KEYS[6]) == 1 then return 0 end
redis.call('DEL', KEYS[2])
local due = time_ms() + ARGV[3]
redis.call('ZADD', KEYS[1], due, ARGV[1])
for _, level in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
    redis.call('ZADD', ARGV[6] .. level .. ':' .. KEYS[1], 'XX', due, ARGV[1])
end
if ARGV[5] ~= '' then redis.call('SET', KEYS[3], ARGV[5]) end
if ARGV[4] == '1' and redis.call('EXISTS', KEYS[4]) == 1 then
    if redis.call('DECR', KEYS[4]) < 1 then redis.call('DEL', KEYS[4]) end
end
return 1
