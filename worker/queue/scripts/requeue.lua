-- Put a job back into its queue: for another attempt, in a drain, for a pause, or because this worker does not know the
-- job.
--
-- The job keeps its priority. If there is a result, another worker has claimed and ended the job, and it is not put
-- back. The lease is deleted first: if Redis is out of memory, a script that has begun to write may continue.
--
-- A paused run is parked: the hash of its pause holds its due time and queue, and unpark.lua makes it due when the
-- pause is removed.
--
-- KEYS queue, lease, payload, attempt, levels of priority in use, result; for a paused run the hash of its pause, and
--      the set of pauses with parked runs
-- ARGV id, owner, delay in ms, 1 if this attempt does not count, payload (Redis may have lost it; for a run in the
--      ledger it is marked), prefix of lines, entry of worker:paused that pauses the run ('' for none)
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
