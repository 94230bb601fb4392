-- One turn of a worker: the jobs that have ended leave, and due ones are claimed for the slots that are free.
--
-- A job that runs stays in its queue, due again when its lease ends: so the due jobs are those that nobody has, the
-- front of the queue is never full of running ones, and a job whose worker has died is due by itself. Its lease is the
-- key in-progress:<id>, which workers of stock arq respect, too; it holds who has the job.
-- Only its holder may end a job. A lease that has expired and that nobody took counts as held; where another worker took
-- it and ended it, there is a result that is not the one told here (a call whose answer was lost is made again).
-- The due time of a job that runs ends in half a millisecond, that of no other one does: who claims such a job knows that
-- its lease has expired, and a renewal that comes late, whether it was put back meanwhile.
-- A Redis whose memory is full lets a script go on that has begun to write: so a full queue is worked off.
-- The payload loses its expiry, if an arq client gave it one: what is claimed must outlive its own time in the queue;
-- unless the worker keeps arq's own rule, by which what has expired is not tried again.
-- Orders for a job are done with when it ends, and what follows it is put into its queue, once: as it leaves its own.
--
-- A queue with priorities has a set of the levels in use, and for each a line of its jobs, by due time: hints, that say
-- which of the queue's due jobs to take first. The queue has the truth; what a line says else is mended here, so that
-- clients and workers of stock arq need not know of them.
-- A queue with a limit has the set of those that run; one whose lease is gone has died, and its place is free.
--
-- KEYS cancelled, paused, abort, pace, limits by order, queues
-- ARGV owner, lease in ms, slots, prefixes of lease, payload, try, result, levels, line, and those that run of a queue,
--      1 where payloads lose their expiry, prefix of groups, ms for which they are kept, what follows the ended jobs
--      (JSON by id; '' for nothing), number of jobs that have ended, then for each of them: id, place of its queue
--      among the queues from 1, result ('' for none), life of the result in ms (below 0: for ever); then, for each
--      queue in the order in which they are served, its place, the most jobs to take from it, and its limit (0 for none)
-- returns {ids of ended jobs that another worker has, or has ended}, {place, id, due time in ms, payload or false, try} for
--         each claim, and 1 where there are orders, which may be for them

-- include clock.lua
-- include running_mark.lua
-- include enqueue_next.lua
local owner, lease, slots = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local held, payloads, tries, results = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local priorities, priority, running = ARGV[8], ARGV[9], ARGV[10]
local persist, ended, at = ARGV[11] == '1', tonumber(ARGV[15]), 16
local first_queue = 5
local refused, claimed = {}, {}
local now_ms = time_ms()

local sequels = ARGV[14] ~= '' and cjson.decode(ARGV[14]) or {}
local names = {payload = payloads, result = results, priorities = priorities, priority = priority, group = ARGV[12],
    keep_group = ARGV[13]}

-- By queue: its levels of priority, highest first; whether there is a set of those that run.
local levels, limited = {}, {}
for at = first_queue + 1, #KEYS do
    levels[KEYS[at]] = redis.call('ZRANGE', priorities .. KEYS[at], 0, -1, 'REV')
    limited[KEYS[at]] = redis.call('EXISTS', running .. KEYS[at]) == 1
end

local ordered = redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3], KEYS[4]) > 0
for _ = 1, ended do
    local id, queue, result, keep = ARGV[at], KEYS[first_queue + ARGV[at + 1]], ARGV[at + 2], tonumber(ARGV[at + 3])
    at = at + 4
    local holder = redis.call('GET', held .. id)
    local told = not holder and redis.call('GET', results .. id)
    if holder and holder ~= owner or told and told ~= result then
        refused[#refused + 1] = id
    else
        redis.call('DEL', held .. id, payloads .. id, tries .. id)
        local was_there = redis.call('ZREM', queue, id) == 1
        for _, level in ipairs(levels[queue]) do redis.call('ZREM', priority .. level .. ':' .. queue, id) end
        if limited[queue] then redis.call('ZREM', running .. queue, id) end
        if result ~= '' and keep > 0 then
            redis.call('SET', results .. id, result, 'PX', keep)
        elseif result ~= '' and keep < 0 then
            redis.call('SET', results .. id, result)
        end
        if ordered then
            redis.call('SREM', KEYS[1], id)
            redis.call('SREM', KEYS[2], id)
            redis.call('ZREM', KEYS[3], id)
            redis.call('HDEL', KEYS[4], id)
        end
        if was_there and sequels[id] then follow(sequels[id], now_ms, names) end
    end
end
if ended == 0 then redis.call('DEL', tries) end  -- the key of no job: so it has begun to write; a replica refuses it
if slots <= 0 then return {refused, claimed, ordered and 1 or 0} end
local again = now_ms + lease + RUNNING_MARK

local function claim(place, id, due)
    if not redis.call('SET', held .. id, owner, 'NX', 'PX', lease) then return false end
    local payload = persist and redis.call('GETEX', payloads .. id, 'PERSIST') or redis.call('GET', payloads .. id)
    claimed[#claimed + 1] = {place, id, due, payload, redis.call('INCR', tries .. id)}
    return true
end

-- Claims jobs of one line of a queue; returns how many.
local function claim_of_line(place, queue, line, most)
    local offset, left = 0, most
    while left > 0 do
        local asked = left
        local due = redis.call('ZRANGEBYSCORE', line, '-inf', now_ms, 'LIMIT', offset, asked)
        for _, id in ipairs(due) do
            local score = redis.call('ZSCORE', queue, id)
            if not score then
                redis.call('ZREM', line, id)
            elseif tonumber(score) > now_ms then
                redis.call('ZADD', line, score, id)
            elseif claim(place, id, score) then
                redis.call('ZADD', queue, again, id)
                redis.call('ZADD', line, again, id)
                left = left - 1
            else
                offset = offset + 1
            end
        end
        if #due < asked then break end
    end
    return most - left
end

local function claim_of_queue(place, queue, most)
    local offset, left, taken = 0, most, {}
    while left > 0 do
        local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now_ms, 'WITHSCORES', 'LIMIT', offset, left)
        for one = 1, #due, 2 do
            local id = due[one]
            if claim(place, id, due[one + 1]) then
                taken[#taken + 1] = again
                taken[#taken + 1] = id
            else
                offset = offset + 1
            end
        end
        local got = #taken / 2
        if got > 0 then redis.call('ZADD', queue, unpack(taken)) end
        if #due < left * 2 then break end
        left, taken = left - got, {}
    end
end

-- Returns how many more jobs of a queue may run; those that have died or gone back are looked for where it matters.
local function room(queue, limit, wanted)
    local busy = running .. queue
    if redis.call('ZCARD', busy) + wanted > limit then
        for _, id in ipairs(redis.call('ZRANGE', busy, 0, -1)) do
            if redis.call('EXISTS', held .. id) == 0 then redis.call('ZREM', busy, id) end
        end
    end
    return limit - redis.call('ZCARD', busy)
end

local limits_ordered = redis.call('EXISTS', KEYS[5]) == 1
while at < #ARGV and #claimed < slots do
    local place, most, limit = ARGV[at], math.min(tonumber(ARGV[at + 1]), slots - #claimed), tonumber(ARGV[at + 2])
    local queue = KEYS[first_queue + place]
    at = at + 3
    if limits_ordered then limit = tonumber(redis.call('HGET', KEYS[5], queue) or limit) or limit end
    if limit > 0 then most = math.min(most, room(queue, limit, most)) end
    local before = #claimed
    for _, level in ipairs(levels[queue]) do
        local line = priority .. level .. ':' .. queue
        most = most - claim_of_line(place, queue, line, most)
        if redis.call('EXISTS', line) == 0 then redis.call('ZREM', priorities .. queue, level) end
    end
    claim_of_queue(place, queue, most)
    if limit > 0 and #claimed > before then
        for one = before + 1, #claimed do redis.call('ZADD', running .. queue, now_ms, claimed[one][2]) end
        redis.call('PEXPIRE', running .. queue, 604800000)
    end
end
return {refused, claimed, ordered and 1 or 0}
