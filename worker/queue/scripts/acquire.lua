-- A claimed job enters, if the limits of its kind let it.
--
-- Who runs is in a sorted set for each limit; one whose lease is gone has died, and its place is free. Who has to wait
-- stands in line, and is due again when a place becomes free (release.lua), or after a while in any case.
-- The rate is the generic cell rate algorithm (ITU-T I.371): a moment before which the next one does not conform. A job
-- that comes too early has its own moment reserved, is due then, and passes: nobody asks twice, nobody waits behind it.
--
-- KEYS who runs, who stands in line, moment of the rate, reservation of this job, limits by order, rates by order
-- ARGV id, job, prefix of leases, limit (0 for none), ms between two by rate (0 for none), ms of tolerance, ms to wait for a
--      place at most
-- returns {ms to wait, 0 to enter; limit or rate}

-- include clock.lua
local id = ARGV[1]
local now_ms = time_ms()
local limit = tonumber(redis.call('HGET', KEYS[5], ARGV[2]) or ARGV[4]) or tonumber(ARGV[4])
local between = tonumber(ARGV[5])
local ordered = tonumber(redis.call('HGET', KEYS[6], ARGV[2]) or '')
if ordered and ordered > 0 then between = 1000 / ordered end
if limit > 0 and not redis.call('ZSCORE', KEYS[1], id) then
    if redis.call('ZCARD', KEYS[1]) >= limit then
        for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
            if redis.call('EXISTS', ARGV[3] .. other) == 0 then redis.call('ZREM', KEYS[1], other) end
        end
    end
    if redis.call('ZCARD', KEYS[1]) >= limit then
        redis.call('ZADD', KEYS[2], 'NX', now_ms, id)
        redis.call('PEXPIRE', KEYS[2], 86400000)
        return {tonumber(ARGV[7]), 'limit'}
    end
end
if between > 0 and redis.call('DEL', KEYS[4]) == 0 then
    local moment = math.max(tonumber(redis.call('GET', KEYS[3]) or '0'), now_ms)
    local after = moment + between
    redis.call('SET', KEYS[3], string.format('%.3f', after), 'PX', math.ceil(after - now_ms) + 1000)
    local wait = math.ceil(moment - tonumber(ARGV[6]) - now_ms)
    if wait > 0 then
        redis.call('SET', KEYS[4], '1', 'PX', wait + 86400000)
        return {wait, 'rate'}
    end
end
if limit > 0 then
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZADD', KEYS[1], now_ms, id)
    redis.call('PEXPIRE', KEYS[1], 604800000)
end
return {0, ''}
