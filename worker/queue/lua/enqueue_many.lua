-- Put many jobs into a queue, each once for its id (see enqueue.lua).
--
-- KEYS queue, cancelled
-- ARGV prefixes of payload and result, delay in ms, or due time in ms where the next is 1, whether it is, then id and
--      payload of each job
-- returns the places, from 1, of those whose id is known
local due = tonumber(ARGV[3])
if ARGV[4] ~= '1' then
    local now = redis.call('TIME')
    due = now[1] * 1000 + math.floor(now[2] / 1000) + due
end
local ordered = redis.call('EXISTS', KEYS[2]) == 1
local known, added = {}, {}
for at = 5, #ARGV, 2 do
    local id = ARGV[at]
    if redis.call('EXISTS', ARGV[2] .. id) == 1 or not redis.call('SET', ARGV[1] .. id, ARGV[at + 1], 'NX') then
        known[#known + 1] = (at - 3) / 2
    else
        if ordered then redis.call('SREM', KEYS[2], id) end
        added[#added + 1] = due
        added[#added + 1] = id
    end
end
if #added > 0 then redis.call('ZADD', KEYS[1], unpack(added)) end
return known
