-- Turns among the fair runs of a queue (included in other scripts; requires checks.lua and clock.lua).
--
-- A fair run has a flow: a value of an argument, e.g. `tenant=north`. The queue decides when a fair run is claimed, and
-- the flows which one: where a fair run is at the front, the run whose turn it is is claimed in its place. So each flow
-- gets its share, however many runs another one has, and all other runs keep their order.
--
-- The turns are start-time fair queueing: a run's turn is one behind that of the run of its flow before it (less with a
-- weight), and not before the turn that was claimed last. Each operation costs as much for one run as for a million.
--
-- A line is a queue, or one of its lines of priority. Its keys:
--   worker:fair:flows:<line>  hash: weight and flow of each run, until it ends
--   worker:fair:turns:<line>  sorted set: the runs that wait and are due, by their turns
--   worker:fair:later:<line>  sorted set: those that are due later, by due time
--   worker:fair:next:<line>   sorted set: the next turn of each flow; `turn` is the turn that was claimed last
-- They are hints, as those of priorities: the queue is authoritative.
local FAIR = 'worker:fair:'
local FAIR_MS = 2592000000
local FAIR_RUNS = 500  -- most runs that get their turns in one call

-- Return whether a line has fair runs.
local function is_fair(line)
    return redis.call('EXISTS', FAIR .. 'flows:' .. line) == 1
end

local function has_fair_types(line)
    local are_sound = has_type(FAIR .. 'flows:' .. line, 'hash')
    for _, kind in ipairs({'turns:', 'later:', 'next:'}) do
        are_sound = has_type(FAIR .. kind .. line, 'zset') and are_sound
    end
    return are_sound
end

-- Give a run its turn.
local function give_turn(line, id, entry, now_ms)
    local weight, flow = string.match(entry, '^(%S+) (.+)$')
    weight = tonumber(weight or '')
    if not weight or not (weight >= 0.001 and weight <= 1000) then weight = 1 end
    local next = FAIR .. 'next:' .. line
    flow = flow or entry
    local claimed = tonumber(redis.call('ZSCORE', next, 'turn') or 0)
    local turn = math.max(claimed, tonumber(redis.call('ZSCORE', next, flow) or 0))
    redis.call('ZADD', next, string.format('%.17g', turn + 1 / weight), flow)
    -- Of equal turns, that of the run that came first is the first one.
    redis.call('ZADD', FAIR .. 'turns:' .. line, string.format('%.17g', turn + now_ms % 100000 * 1e-9), id)
end

-- Add a run to a line.
local function add_fair(line, id, entry, due, now_ms)
    if not has_fair_types(line) then return end
    redis.call('HSET', FAIR .. 'flows:' .. line, id, entry)
    if due > now_ms then
        redis.call('ZREM', FAIR .. 'turns:' .. line, id)
        redis.call('ZADD', FAIR .. 'later:' .. line, due, id)
    else
        give_turn(line, id, entry, now_ms)
    end
    for _, kind in ipairs({'flows:', 'turns:', 'later:', 'next:'}) do
        redis.call('PEXPIRE', FAIR .. kind .. line, FAIR_MS)
    end
end

-- Note that a run is due at another time: if it waits for that time, or, in a requeue, if its line has it.
local function move_fair(line, id, due, is_requeued)
    if not is_requeued then
        try('ZADD', FAIR .. 'later:' .. line, 'XX', due, id)
    elseif try('HEXISTS', FAIR .. 'flows:' .. line, id) == 1 then
        try('ZREM', FAIR .. 'turns:' .. line, id)
        try('ZADD', FAIR .. 'later:' .. line, due, id)
    end
end

-- Remove a run from a line.
local function forget_fair(line, id)
    if try('HDEL', FAIR .. 'flows:' .. line, id) ~= 1 then return end
    try('ZREM', FAIR .. 'turns:' .. line, id)
    try('ZREM', FAIR .. 'later:' .. line, id)
    if not is_fair(line) then
        redis.call('DEL', FAIR .. 'turns:' .. line, FAIR .. 'later:' .. line, FAIR .. 'next:' .. line)
    end
end

-- Give turns to the runs of a line that have become due.
local function give_due_turns(queue, line, now_ms)
    local later = FAIR .. 'later:' .. line
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', now_ms, 'LIMIT', 0, FAIR_RUNS)) do
        local entry, due = redis.call('HGET', FAIR .. 'flows:' .. line, id), redis.call('ZSCORE', queue, id)
        if due and entry and tonumber(due) > now_ms then
            redis.call('ZADD', later, due, id)
        else
            redis.call('ZREM', later, id)
            if due and entry then give_turn(line, id, entry, now_ms) end
            if entry and not due then forget_fair(line, id) end
        end
    end
end

-- Take the run whose turn it is out of the turns. Return its id and due time; nothing if no run has a turn.
local function take_turn(queue, line, now_ms)
    local turns, next = FAIR .. 'turns:' .. line, FAIR .. 'next:' .. line
    for _ = 1, FAIR_RUNS do
        local id, turn = unpack(redis.call('ZRANGE', turns, 0, 0, 'WITHSCORES'))
        if not id then return nil end
        redis.call('ZREM', turns, id)
        local due = redis.call('ZSCORE', queue, id)
        if not due then
            forget_fair(line, id)
        elseif tonumber(due) > now_ms then
            redis.call('ZADD', FAIR .. 'later:' .. line, due, id)
        else
            redis.call('ZADD', next, turn, 'turn')
            redis.call('ZREMRANGEBYSCORE', next, '-inf', '(' .. turn)
            return id, due
        end
    end
    return nil
end
