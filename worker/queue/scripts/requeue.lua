-- Put a job back into its queue: for another attempt, after a drain, while it is paused, or because this worker does not
-- know it.
--
-- It keeps its priority. A job that another worker has taken and ended is not put back: there is a result. The lease is
-- deleted first: if Redis is out of memory, a script that has begun to write may go on.
--
-- A paused run is parked: the hash of its order holds its due time and queue, and unpark.lua makes it due when the order is
-- taken back.
--
-- KEYS queue, lease, payload, attempt, levels of priority in use, result; for a paused run the hash of its order, and the
--      set of such orders
-- ARGV id, owner, delay in ms, 1 if this attempt does not count, payload (Redis may have lost it; that of a run in the
--      ledger says so), prefix of lines, order that pauses the run ('' for none)
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
if ARGV[7] ~= '' and try('HSET', KEYS[7], ARGV[1], string.format('%.0f', due) .. ' ' .. KEYS[1]) then
    try('SADD', KEYS[8], ARGV[7])
end
if ARGV[5] ~= '' then redis.call('SET', KEYS[3], ARGV[5]) end
if ARGV[4] == '1' and redis.call('EXISTS', KEYS[4]) == 1 then
    local left = try('DECR', KEYS[4])
    if not left or left < 1 then redis.call('DEL', KEYS[4]) end
end
return 1
