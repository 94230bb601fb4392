-- Claim due jobs for one worker: one round trip for as many as it has slots.
--
-- A job that runs stays in the queue (arq's convention); its lease is the key in-progress:<id>, which expires by
-- itself when its worker dies. So the due jobs are read page by page, past those that others have.
-- The payload loses its expiry, if an arq client gave it one: what is claimed must outlive its own time in the queue.
--
-- KEYS queue
-- ARGV owner, lease in ms, slots, prefixes of lease, payload, try
-- returns {id, due time in ms, payload or false, try} for each claimed job
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local slots, page = tonumber(ARGV[3]), 100
local claimed, offset = {}, 0
while #claimed < slots do
    local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'WITHSCORES', 'LIMIT', offset, page)
    for at = 1, #due, 2 do
        local id = due[at]
        if #claimed < slots and redis.call('SET', ARGV[4] .. id, ARGV[1], 'NX', 'PX', ARGV[2]) then
            local payload = redis.call('GET', ARGV[5] .. id)
            if payload then redis.call('PERSIST', ARGV[5] .. id) end
            local try = redis.call('INCR', ARGV[6] .. id)
            claimed[#claimed + 1] = {id, due[at + 1], payload, try}
        end
    end
    if #due < page * 2 then break end
    offset = offset + page
end
return claimed
