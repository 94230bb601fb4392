-- Acknowledge jobs that have ended, and claim due jobs for the free slots of a worker.
--
-- A running job stays in its queue, due when its lease expires. So no due job is running, the front of the queue is
-- never full of running jobs, and a job whose worker has died becomes due automatically. The lease is the key
-- in-progress:<id>, which stock arq workers respect as well. Its value is the owner.
--
-- Only the owner of a lease may acknowledge its job. An expired lease that no other worker has acquired counts as
-- owned. If another worker claimed and ended the job, the stored result differs from the one that is acknowledged here.
-- A call whose answer was lost is repeated, and changes nothing the second time.
--
-- If an arq client set an expiry for a payload, the claim removes it, because a claimed job may run longer than that. A
-- worker with arq's rule keeps the expiry: an expired job is not run again.
--
-- The commands of operators for a job are deleted when it ends. Its next run is enqueued once: when the job is removed
-- from its queue.
--
-- Priorities (priority.lua) are hints: this script corrects entries that contradict the queue, so that stock arq
-- clients and workers need not know about them. So are the turns of fair runs (fair.lua). A queue with a limit has a sorted set of its running jobs. A job
-- without a lease has died, and does not count.
--
-- A key of a wrong type, or with a wrong value, is reported, and only the job that it belongs to is affected. If Redis
-- is out of memory, a script that has begun to write may continue, so that the jobs of a full queue still end.
--
-- KEYS cancelled, paused, abort, pace, limits set by operators, queues
-- ARGV owner, lease in ms, slots; prefixes of leases, payloads, attempts and results, of levels and lines of priority,
--      and of running jobs of a queue; 1 if payloads lose their expiry; prefix of groups, and ms for which they are
--      kept; keys of dead letters and of their times; follow-ups of the ended jobs (JSON by id, '' for none); number of
--      ended jobs; number of jobs to claim from the newest end of each queue, before all others; for each of them: id, index of its queue among the queues from 1, result ('' for none), lifetime of
--      the result in ms (below 0 for no limit); then for each queue to claim from, in order: its index, the most jobs
--      to claim, and its limit (0 for none)
-- returns {ids of ended jobs that another worker owns or has ended}, {index of queue, id, due time in ms, payload or
--         false, attempt} for each claim, 1 if operators have set something that may apply to them, and the problems

-- include clock.lua
-- include running_mark.lua
-- include enqueue_next.lua
local owner, lease, slots = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local leases, payloads, attempts, results = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local priorities, priority, running = ARGV[8], ARGV[9], ARGV[10]
local persist, ended, newest, at = ARGV[11] == '1', tonumber(ARGV[17]), tonumber(ARGV[18]), 19
local first_queue = 5
local refused, claimed = {}, {}
local now_ms = time_ms()

local follow_ups = ARGV[16] ~= '' and cjson.decode(ARGV[16]) or {}
local names = {payload = payloads, result = results, priorities = priorities, priority = priority, group = ARGV[12],
    keep_group = ARGV[13], dead = ARGV[14], dead_at = ARGV[15]}

-- For each queue: whether it is one, its levels of priority from the highest, whether it has a set of running jobs, and
-- its lines with fair runs.
local is_queue, levels, limited, fair_lines = {}, {}, {}, {}
for at = first_queue + 1, #KEYS do
    local queue = KEYS[at]
    is_queue[queue] = has_type(queue, 'zset')
    levels[queue] = try('ZRANGE', priorities .. queue, 0, -1, 'REV') or {}
    limited[queue] = (try('ZCARD', running .. queue) or 0) > 0
    fair_lines[queue] = {}
    if is_fair(queue) then fair_lines[queue][1] = queue end
    for _, level in ipairs(levels[queue]) do
        local line = priority .. level .. ':' .. queue
        if is_fair(line) then table.insert(fair_lines[queue], line) end
    end
end

local ordered = redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3], KEYS[4]) > 0
for _ = 1, ended do
    local id, queue, result, keep = ARGV[at], KEYS[first_queue + ARGV[at + 1]], ARGV[at + 2], tonumber(ARGV[at + 3])
    at = at + 4
    local holder = try('GET', leases .. id)
    local stored = not holder and try('GET', results .. id)
    if holder and holder ~= owner or stored and stored ~= result then
        refused[#refused + 1] = id
    else
        local had_payload = redis.call('DEL', payloads .. id) == 1
        redis.call('DEL', leases .. id, attempts .. id)
        local was_there = had_payload
        if is_queue[queue] then was_there = redis.call('ZREM', queue, id) == 1 end
        for _, level in ipairs(levels[queue]) do try('ZREM', priority .. level .. ':' .. queue, id) end
        for _, line in ipairs(fair_lines[queue]) do forget_fair(line, id) end
        if limited[queue] then redis.call('ZREM', running .. queue, id) end
        if result ~= '' and keep > 0 then
            redis.call('SET', results .. id, result, 'PX', keep)
        elseif result ~= '' and keep < 0 then
            redis.call('SET', results .. id, result)
        end
        if ordered then
            try('SREM', KEYS[1], id)
            try('SREM', KEYS[2], id)
            try('ZREM', KEYS[3], id)
            try('HDEL', KEYS[4], id)
        end
        if was_there and follow_ups[id] then follow(follow_ups[id], now_ms, names) end
    end
end
if ended == 0 then redis.call('DEL', attempts) end  -- a write (to a missing key), so that a replica rejects the script
if slots <= 0 then return {refused, claimed, ordered and 1 or 0, problems} end
local again = now_ms + lease + RUNNING_MARK

local function claim(index, id, due)
    if not redis.call('SET', leases .. id, owner, 'NX', 'PX', lease) then
        has_type(leases .. id, 'string')
        return false
    end
    local payload
    if persist then payload = try('GETEX', payloads .. id, 'PERSIST') else payload = try('GET', payloads .. id) end
    local attempt = try('INCR', attempts .. id)
    if not attempt then
        redis.call('SET', attempts .. id, 1)
        attempt = 1
    end
    claimed[#claimed + 1] = {index, id, due, payload or false, attempt}
    return true
end

-- Claim jobs of one priority of a queue. Return how many.
local function claim_from_line(index, queue, line, most)
    local offset, left = 0, most
    while left > 0 do
        local asked = left
        local due = try('ZRANGEBYSCORE', line, '-inf', now_ms, 'LIMIT', offset, asked) or {}
        for _, id in ipairs(due) do
            local score = redis.call('ZSCORE', queue, id)
            if not score then
                redis.call('ZREM', line, id)
            elseif tonumber(score) > now_ms then
                redis.call('ZADD', line, score, id)
            elseif claim(index, id, score) then
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

local function claim_from_queue(index, queue, most)
    local offset, left = 0, most
    while left > 0 do
        local asked = math.min(left, 1000)  -- Lua passes a limited number of arguments
        local due, taken = redis.call('ZRANGEBYSCORE', queue, '-inf', now_ms, 'WITHSCORES', 'LIMIT', offset, asked), {}
        for one = 1, #due, 2 do
            local id = due[one]
            if claim(index, id, due[one + 1]) then
                taken[#taken + 1] = again
                taken[#taken + 1] = id
            else
                offset = offset + 1
            end
        end
        if #taken > 0 then redis.call('ZADD', queue, unpack(taken)) end
        if #due < asked * 2 then break end
        left = left - #taken / 2
    end
end

-- Claim jobs of a line with fair runs: the queue, or a priority of it. Where a fair run is at the front, claim the run
-- whose turn it is. Return how many.
local function claim_fairly(index, queue, line, most)
    local offset, left = 0, most
    give_due_turns(queue, line, now_ms)
    while left > 0 and offset < FAIR_RUNS do
        local id = (try('ZRANGEBYSCORE', line, '-inf', now_ms, 'LIMIT', offset, 1) or {})[1]
        if not id then break end
        local due = redis.call('ZSCORE', queue, id)
        if not due then
            redis.call('ZREM', line, id)
        elseif tonumber(due) > now_ms then
            redis.call('ZADD', line, due, id)
        else
            local chosen, entry = id, redis.call('HGET', FAIR .. 'flows:' .. line, id)
            if entry then
                if not redis.call('ZSCORE', FAIR .. 'turns:' .. line, id) then
                    redis.call('ZREM', FAIR .. 'later:' .. line, id)
                    give_turn(line, id, entry, now_ms)
                end
                local first, first_due = take_turn(queue, line, now_ms)
                chosen, due = first or id, first_due or due
            end
            if claim(index, chosen, due) then
                redis.call('ZADD', queue, again, chosen)
                if line ~= queue then redis.call('ZADD', line, 'XX', again, chosen) end
                left = left - 1
            else  -- a stock arq worker runs it: there, a running job stays due
                if entry then redis.call('ZADD', FAIR .. 'later:' .. line, again, chosen) end
                offset = offset + 1
            end
        end
    end
    return most - left
end

-- Claim the jobs of a queue that became due last. Return how many.
local function claim_newest(index, queue, most)
    if most <= 0 then return 0 end
    local taken = 0
    local due = redis.call('ZREVRANGEBYSCORE', queue, now_ms, '-inf', 'WITHSCORES', 'LIMIT', 0, most + 5)
    for one = 1, #due, 2 do
        if taken < most and claim(index, due[one], due[one + 1]) then
            redis.call('ZADD', queue, again, due[one])
            taken = taken + 1
        end
    end
    return taken
end

-- Return how many more jobs of a queue may run. If the limit is reached, remove jobs that have died or were requeued.
local function free_places(queue, limit, wanted)
    local key = running .. queue
    if not has_type(key, 'zset') then return wanted end
    if redis.call('ZCARD', key) + wanted > limit then
        for _, id in ipairs(redis.call('ZRANGE', key, 0, -1)) do
            if redis.call('EXISTS', leases .. id) == 0 then redis.call('ZREM', key, id) end
        end
    end
    return limit - redis.call('ZCARD', key)
end

local has_limits = redis.call('EXISTS', KEYS[5]) == 1
while at < #ARGV and #claimed < slots do
    local index, most, limit = ARGV[at], math.min(tonumber(ARGV[at + 1]), slots - #claimed), tonumber(ARGV[at + 2])
    local queue = KEYS[first_queue + index]
    at = at + 3
    if has_limits then limit = whole_number(KEYS[5], queue) or limit end
    if is_queue[queue] then
        if limit > 0 then most = math.min(most, free_places(queue, limit, most)) end
        local before = #claimed
        most = most - claim_newest(index, queue, math.min(newest, most))
        for _, level in ipairs(levels[queue]) do
            local line = priority .. level .. ':' .. queue
            if #fair_lines[queue] > 0 and is_fair(line) and has_fair_types(line) then
                most = most - claim_fairly(index, queue, line, most)
            else
                most = most - claim_from_line(index, queue, line, most)
            end
            if redis.call('EXISTS', line) == 0 then redis.call('ZREM', priorities .. queue, level) end
        end
        if fair_lines[queue][1] == queue and has_fair_types(queue) then
            claim_fairly(index, queue, queue, most)
        else
            claim_from_queue(index, queue, most)
        end
        if limit > 0 and #claimed > before and has_type(running .. queue, 'zset') then
            for one = before + 1, #claimed do redis.call('ZADD', running .. queue, now_ms, claimed[one][2]) end
            redis.call('PEXPIRE', running .. queue, 604800000)
        end
    end
end
return {refused, claimed, ordered and 1 or 0, problems}
