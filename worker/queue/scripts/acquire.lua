-- Acquire a place under the limits of a job for a claimed run.
--
-- The running runs of a limit are in a sorted set, each with the number of the claim that acquired the place. A run without a lease has died, and does not count. A run that has
-- to wait is in the sorted set of waiting runs. It is due again when a place becomes free (release.lua). The first two
-- waiting runs are due again after some seconds in any case, because the owner of a place may have died. The delay of
-- the others grows with their position, so that thousands of waiting runs cause little load. If a run acquires a place,
-- the runs behind it move up.
--
-- The rate limit is the generic cell rate algorithm (ITU-T I.371): the next run does not conform before a moment. If a
-- run comes too early, its moment is reserved; the run is due at that moment, and passes then, and not before. Moments
-- are noted with the ms between two runs: if an operator has changed the rate, those of the former rate do not count.
--
-- A key of a wrong type or a wrong value is reported and ignored: the limit of the code applies.
--
-- KEYS running runs, waiting runs, moment of the rate, reservation of this run, limits and rates set by operators,
--      queue, levels of priority in use
-- ARGV id, job, prefix of leases, limit (0 for none), ms between two runs (0 for no rate), ms of tolerance, longest
--      wait for a place in ms, prefix of lines of priority, number of the claim
-- returns {ms to wait (0 if the place is acquired), limit or rate, problems, 1 if the run has a place}

-- include clock.lua
-- include checks.lua
-- include fair.lua
local FIRST = 10  -- number of waiting runs that move up when a run acquires a place
local id = ARGV[1]
local now_ms = time_ms()
local limit = whole_number(KEYS[5], ARGV[2]) or tonumber(ARGV[4])
local between = tonumber(ARGV[5])
local rate = try('HGET', KEYS[6], ARGV[2])
if rate then
    local per_second = tonumber(rate)
    if per_second and per_second >= 1e-6 and per_second <= 1e9 then
        between = 1000 / per_second
    else
        note(KEYS[6], 'value', ARGV[2] .. ' = ' .. string.sub(rate, 1, 100))
    end
end
local limited = limit > 0 and has_type(KEYS[1], 'zset') and has_type(KEYS[2], 'zset')
if limited and not redis.call('ZSCORE', KEYS[1], id) then
    if redis.call('ZCARD', KEYS[1]) >= limit then
        for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
            if redis.call('EXISTS', ARGV[3] .. other) == 0 then redis.call('ZREM', KEYS[1], other) end
        end
    end
    if redis.call('ZCARD', KEYS[1]) >= limit then
        redis.call('ZADD', KEYS[2], 'NX', now_ms, id)
        redis.call('PEXPIRE', KEYS[2], 86400000)
        local behind = math.max(0, redis.call('ZRANK', KEYS[2], id) - 1)
        return {math.min(tonumber(ARGV[7]) * (1 + behind), 3600000), 'limit', problems, 0}
    end
end
local rate_mark = string.format('%.6g', between)

-- Return the moment of a key. One further ahead than a hundred years was not written by this script. Many runs under a
-- low rate reserve moments that are months ahead.
local function read_moment(key)
    local text, mark = string.match(try('GET', key) or '0', '^(%S+) ?(%S*)$')
    local moment = tonumber(text or '')
    if not moment or moment ~= moment or moment > now_ms + 3155760000000 then
        note(key, 'value', 'not a moment within a hundred years')
        return 0, ''
    end
    return moment, mark
end

local function wait_for_rate(wait)
    if limited then redis.call('ZREM', KEYS[2], id) end  -- it waits for no place now
    return {wait, 'rate', problems, 0}
end

local reserved, reserved_mark = read_moment(KEYS[4])
local has_moment = between > 0 and reserved > 0 and (reserved_mark == rate_mark or reserved_mark == '')
if has_moment and reserved > now_ms then return wait_for_rate(math.ceil(reserved - now_ms)) end
redis.call('DEL', KEYS[4])
if between > 0 and not has_moment then
    local moment, mark = read_moment(KEYS[3])
    if mark ~= '' and mark ~= rate_mark then moment = math.min(moment, now_ms + between) end
    moment = math.max(moment, now_ms)
    local after = moment + between
    local text = string.format('%.3f %s', after, rate_mark)
    redis.call('SET', KEYS[3], text, 'PX', math.ceil(after - now_ms) + 1000)
    local wait = math.ceil(moment - tonumber(ARGV[6]) - now_ms)
    if wait > 0 then
        redis.call('SET', KEYS[4], string.format('%.0f %s', now_ms + wait, rate_mark), 'PX', wait + 86400000)
        return wait_for_rate(wait)
    end
end
if limited then
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZADD', KEYS[1], ARGV[9], id)
    redis.call('PEXPIRE', KEYS[1], 604800000)
    local free = limit - redis.call('ZCARD', KEYS[1])
    for place, other in ipairs(redis.call('ZRANGE', KEYS[2], 0, FIRST - 1)) do
        local due = try('ZSCORE', KEYS[7], other)
        local sooner = place <= free and now_ms or now_ms + tonumber(ARGV[7])
        if due and tonumber(due) > sooner and redis.call('EXISTS', ARGV[3] .. other) == 0 then
            redis.call('ZADD', KEYS[7], 'XX', sooner, other)
            move_fair(KEYS[7], other, sooner)
            for _, level in ipairs(try('ZRANGE', KEYS[8], 0, -1) or {}) do
                local line = ARGV[8] .. level .. ':' .. KEYS[7]
                try('ZADD', line, 'XX', sooner, other)
                move_fair(line, other, sooner)
            end
        end
    end
end
return {0, '', problems, limited and 1 or 0}
