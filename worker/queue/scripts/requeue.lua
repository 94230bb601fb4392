-- Put a job back into its queue: for another attempt, after a drain, while it is paused, or because this worker does not
-- know it.
--
-- It keeps its priority. A job that another worker has taken and ended is not put back: there is a result. The lease is
-- deleted first: if Redis is out of memory, a script that has begun to write may go on.
--
-- KEYS queue, lease, payload, attempt, levels of priority in use, result
-- ARGV id, owner, delay in ms, 1 if this attempt does not count, payload (Redis may have lost it; that of a run in the
--      ledger says so), prefix of lines
-- returns 1; 0 if another worker has the job, or has ended it; or the problems, if the queue is unsound

-- include clock.lua
-- include checks.lua
if not has_type(KEYS[1], 'zset') then return {problems} end
local holder = try('GET', KEYS[2])
if holder and holder ~= ARGV[2] or not holder and redis.call('EXISTS', KEYS[6]) == 1 then return 0 end
redis.call('DEL', KEYS[2])
local due = time_ms() + ARGV[3]
redis.call('ZADD', KEYS[1], due, ARGV[1])
for _, level in ipairs(try('ZRANGE', KEYS[5], 0, -1) or {}) do
    try('ZADD', ARGV[6] .. level .. ':' .. KEYS[1], 'XX', due, ARGV[1])
end
if ARGV[5] ~= '' then redis.call('SET', KEYS[3], ARGV[5]) end
if ARGV[4] == '1' and redis.call('EXISTS', KEYS[4]) == 1 then
    local left = try('DECR', KEYS[4])
    if not left or left < 1 then redis.call('DEL', KEYS[4]) end
end
return 1
