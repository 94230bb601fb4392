-- One turn of a worker: the jobs that have ended leave, and due ones are claimed for the slots that are free.
--
-- A job that runs stays in its queue, due again when its lease ends: so the due jobs are those that nobody has, the
-- front of the queue is never full of running ones, and a job whose worker has died is due by itself. Its lease is the
-- key in-progress:<id>, which workers of stock arq respect, too; it holds who has the job.
-- Only its holder may end a job. A lease that has expired and that nobody took counts as held.
-- The payload loses its expiry, if an arq client gave it one: what is claimed must outlive its own time in the queue;
-- unless the worker keeps arq's own rule, by which what has expired is not tried again.
-- Orders for a job are done with when it ends.
--
-- KEYS cancelled, paused, abort, pace, queues
-- ARGV owner, lease in ms, slots, prefixes of lease, payload, try, result, 1 where payloads lose their expiry, number of
--      jobs that have ended, then for each of them: id, place of its queue among the queues from 1, result ('' for
--      none), life of the result in ms (below 0: for ever); then, for each queue in the order in which they are served,
--      its place and the most jobs to take from it
-- returns {ids of ended jobs that another worker has}, {place, id, due time in ms, payload or false, try} for each claim,
--         the time in ms at which those are due again, and 1 where there are orders, which may be for them
local owner, lease, slots = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local held, payloads, tries, results = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local persist, ended, at = ARGV[8] == '1', tonumber(ARGV[9]), 10
local refused, claimed, again = {}, {}, 0

local ordered = redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3], KEYS[4]) > 0
if ended > 0 then
    for _ = 1, ended do
        local id, queue, result, keep = ARGV[at], KEYS[4 + ARGV[at + 1]], ARGV[at + 2], tonumber(ARGV[at + 3])
        at = at + 4
        local holder = redis.call('GET', held .. id)
        if holder and holder ~= owner then
            refused[#refused + 1] = id
        else
            redis.call('DEL', held .. id, payloads .. id, tries .. id)
            redis.call('ZREM', queue, id)
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
        end
    end
end

if slots > 0 then
    local now = redis.call('TIME')
    local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
    again = now_ms + lease
    while at < #ARGV and #claimed < slots do
        local place, most = ARGV[at], math.min(tonumber(ARGV[at + 1]), slots - #claimed)
        local queue = KEYS[4 + place]
        at = at + 2
        local offset, taken = 0, {}
        while most > 0 do
            local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now_ms, 'WITHSCORES', 'LIMIT', offset, most)
            for one = 1, #due, 2 do
                local id = due[one]
                if redis.call('SET', held .. id, owner, 'NX', 'PX', lease) then
                    local payload = persist and redis.call('GETEX', payloads .. id, 'PERSIST') or redis.call('GET', payloads .. id)
                    local try = redis.call('INCR', tries .. id)
                    claimed[#claimed + 1] = {place, id, due[one + 1], payload, try}
                    taken[#taken + 1] = again
                    taken[#taken + 1] = id
                else
                    offset = offset + 1
                end
            end
            local got = #taken / 2
            if got > 0 then redis.call('ZADD', queue, unpack(taken)) end
            if #due < most * 2 then break end
            most, taken = most - got, {}
        end
    end
end
return {refused, claimed, again, ordered and 1 or 0}
