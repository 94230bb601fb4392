-- A job goes back into the queue: for another try, drained, paused, or unknown to this worker.
--
-- It keeps its place in a line of priority.
--
-- KEYS queue, lease, payload, try, levels of priority that are in use
-- ARGV id, owner, delay in ms, 1 when this claim is not to count as a try, payload (a Redis may have lost it; a run in
--      the ledger says so there), prefix of lines
-- returns 1, or 0 where another worker has the job
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then return 0 end
local now = redis.call('TIME')
local due = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[3]
-- Another due time than its claim gave it: a renewal that comes late tells the two apart by it (renew.lua).
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) == due then due = due + 1 end
redis.call('ZADD', KEYS[1], due, ARGV[1])
for _, level in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
    redis.call('ZADD', ARGV[6] .. level .. ':' .. KEYS[1], 'XX', due, ARGV[1])
end
if ARGV[5] ~= '' then redis.call('SET', KEYS[3], ARGV[5]) end
if ARGV[4] == '1' and redis.call('EXISTS', KEYS[4]) == 1 then
    if redis.call('DECR', KEYS[4]) < 1 then redis.call('DEL', KEYS[4]) end
end
redis.call('DEL', KEYS[2])
return 1
