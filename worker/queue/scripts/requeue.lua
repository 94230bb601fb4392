-- Put a job back into its queue: for another attempt, in a drain, for a pause, or because this worker does not know the
-- job.
--
-- The job keeps its priority. If there is a result, another worker has claimed and ended the job, and it is not put
-- back. The lease is deleted first: if Redis is out of memory, a script that has begun to write may continue.
--
-- A paused run is parked: the hash of its pause holds its due time and queue, and unpark.lua makes it due when the
-- pause is removed.
--
-- A run of a job that this worker does not know is parked, too, until a worker knows the job (unpark_known.lua). In case
-- a worker that does not use these keys knows it, the run is also due again: after the delay, or later if many runs
-- of the queue are parked, so that together they are due some ten times a second.
--
-- KEYS queue, lease, payload, attempt, levels of priority in use, result; for a paused run the hash of its pause, and
--      the set of pauses with parked runs; for an unknown job the runs that wait for it, and the parked runs of the queue
-- ARGV id, owner, delay in ms, 1 if this attempt does not count, payload (Redis may have lost it; for a run in the
--      ledger it is marked), prefix of lines, entry of worker:paused that pauses the run ('' for none); for an
--      unknown job ms for each parked run ('' for a known one), and the longest delay in ms; the line of runs in which
--      it waits for a place ('' for none)
-- returns 1; 0 if another worker has the job, or has ended it; or the problems, if the queue is unsound

-- include clock.lua
-- include checks.lua
-- include fair.lua
if not has_type(KEYS[1], 'zset') then return {problems} end
local holder = try('GET', KEYS[2])
if holder and holder ~= ARGV[2] or not holder and redis.call('EXISTS', KEYS[6]) == 1 then return 0 end
redis.call('DEL', KEYS[2])
local now_ms = time_ms()
local delay = tonumber(ARGV[3])
local is_unknown = (ARGV[8] or '') ~= '' and has_type(KEYS[7], 'zset') and has_type(KEYS[8], 'zset')
if is_unknown then
    redis.call('ZREMRANGEBYSCORE', KEYS[8], '-inf', now_ms - 60000)  -- ended, or known meanwhile
    delay = math.floor(math.min(math.max(delay, redis.call('ZCARD', KEYS[8]) * ARGV[8]), tonumber(ARGV[9])))
end
local line = ARGV[10] or ''
-- A place became free after the run was refused one, and before this call: release.lua has taken the run out of the line.
if line ~= '' and not try('ZSCORE', line, ARGV[1]) then delay = 0 end
local due = now_ms + delay
redis.call('ZADD', KEYS[1], due, ARGV[1])
move_fair(KEYS[1], ARGV[1], due, true)
for _, level in ipairs(try('ZRANGE', KEYS[5], 0, -1) or {}) do
    local line = ARGV[6] .. level .. ':' .. KEYS[1]
    try('ZADD', line, 'XX', due, ARGV[1])
    move_fair(line, ARGV[1], due, true)
end
if is_unknown then
    for _, key in ipairs({KEYS[7], KEYS[8]}) do
        redis.call('ZADD', key, due, ARGV[1])
        redis.call('PEXPIRE', key, 2592000000)
    end
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
