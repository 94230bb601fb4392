-- Put one run into its queue, which is a sorted set (included in other scripts; requires clock.lua, checks.lua,
-- priority.lua and fair.lua). enqueue.lua states the rules.
--
-- `run` has queue, id, payload, due time in ms, levels (key of the levels of priority in use), level ('0' for none),
-- fair ('' for none), replace; lock (key; false for none), counts (when the lock counts) and lock_ms (its lifetime).
-- A script that calls this for many runs can set in_use (the levels in use).
-- `names` has the prefixes payload, result, lease and priority, and the key cancelled (false if it does not exist).
local function take_place(run, names, id, is_replaced)
    redis.call('ZADD', run.queue, run.due, id)
    local line = run.level ~= '0' and names.priority .. run.level .. ':' .. run.queue or run.queue
    for _, level in ipairs(run.in_use or try('ZRANGE', run.levels, 0, -1) or {}) do
        local other = names.priority .. level .. ':' .. run.queue
        if level ~= run.level then try('ZREM', other, id) end
        if is_replaced then forget_fair(other, id) end
    end
    if line ~= run.queue then add_to_priority(run.levels, line, run.level, run.due, id) end
    if is_replaced then forget_fair(run.queue, id) end
    if run.fair ~= '' then add_fair(line, id, run.fair, run.due, time_ms()) end
end

-- Return 1 if the run was enqueued, 2 if it replaced a run, 0 if its id is known; and the id of the run.
local function enqueue_run(run, names)
    local id, known = run.id, false
    if run.lock then
        local holder = try('GET', run.lock)
        if holder and holder ~= id then
            local is_there = redis.call('EXISTS', names.payload .. holder) == 1
            local runs = redis.call('EXISTS', names.lease .. holder) == 1
            if run.counts == 'time' or (is_there and (run.counts == 'active' or not runs)) then
                id, known = holder, true
            end
        end
    end
    if known or redis.call('EXISTS', names.payload .. id, names.result .. id) > 0 then
        local waits = redis.call('EXISTS', names.payload .. id) == 1
        if run.replace and waits and redis.call('EXISTS', names.lease .. id) == 0 then
            redis.call('SET', names.payload .. id, run.payload)
            take_place(run, names, id, true)
            return 2, id
        end
        return 0, id
    end
    redis.call('SET', names.payload .. id, run.payload)  -- first: if memory is full, Redis rejects it, and nothing is written
    if names.cancelled then try('SREM', names.cancelled, id) end
    take_place(run, names, id)
    if run.lock then redis.call('SET', run.lock, id, 'PX', run.lock_ms) end
    return 1, id
end
