-- Process the follow-up of an ended run (included in other scripts, which pass the prefixes of keys as `names`).
--
-- The script that removes a job from its queue calls this once for each end, and only if the job was in the queue.
--
-- * The next run of a chain is put into its queue. If that queue is not a sorted set, the run becomes a dead letter,
--   which an operator can retry after the key is repaired.
-- * A member of a group is marked as complete. The last one enqueues the callback, with the results of all members in
--   their order if the callback needs them. The result of a skipped run is deleted.
-- * The lock of a unique job is deleted if it counts while the job is in the queue and this run still owns it.
--
-- The hash of a group: size, complete_when (all_succeeded or all_finished), id, queue, delay, priority, fair, payload,
-- payload_after_results of its callback, and called, the time in ms at which the callback was enqueued. A second hash
-- with the suffix `:done` has the results by place. If workers trace, `span:<place>` has the spans of the first members
-- that complete.

-- include checks.lua
-- include priority.lua
-- include fair.lua

local function bury_next(run, now_ms, names)
    if not has_type(names.dead, 'hash') then return end
    redis.call('HSET', names.dead, run.id, cjson.encode({
        job = run.job or '', queue = run.queue, payload = run.payload, traceback = '', ledger = false,
        at = now_ms / 1000, attempts = 0, error = run.queue .. ' is not a sorted set: the run could not be enqueued'
    }))
    if has_type(names.dead_at, 'zset') then redis.call('ZADD', names.dead_at, now_ms, run.id) end
end

local function put_next(run, now_ms, names)
    if not has_type(run.queue, 'zset') then
        bury_next(run, now_ms, names)
    elseif redis.call('SET', names.payload .. run.id, run.payload, 'NX') then
        local due, priority = now_ms + (tonumber(run.delay) or 0), tonumber(run.priority) or 0
        redis.call('DEL', names.result .. run.id)
        redis.call('ZADD', run.queue, due, run.id)
        local line = run.queue
        if priority > 0 then
            line = names.priority .. priority .. ':' .. run.queue
            add_to_priority(names.priorities .. run.queue, line, priority, due, run.id)
        end
        if (run.fair or '') ~= '' then add_fair(line, run.id, run.fair, due, now_ms) end
    end
end

local function results_in_order(done, size)
    local found, all = redis.call('HGETALL', done), {}
    for place = 1, size do all[place] = 'null' end
    for at = 1, #found, 2 do
        local place = tonumber(found[at])
        if place and all[place] then all[place] = found[at + 1] end
    end
    return '[' .. table.concat(all, ',') .. ']'
end

local function member_done(member, now_ms, names)
    local key = names.group .. member[1]
    local done = key .. ':done'
    if not has_type(key, 'hash') or not has_type(done, 'hash') then return end
    local size, complete_when, called = unpack(redis.call('HMGET', key, 'size', 'complete_when', 'called'))
    if not size or called or (complete_when == 'all_succeeded' and not member[4]) then return end
    size = tonumber(size)
    if not size or size ~= size or size < 1 or size > 1e9 then
        note(key, 'value', 'size')
        return
    end
    if redis.call('HSETNX', done, member[2], member[3]) == 0 then return end
    if (member[5] or '') ~= '' and redis.call('HLEN', key) < 48 then
        redis.call('HSET', key, 'span:' .. member[2], member[5])
    end
    redis.call('PEXPIRE', key, names.keep_group)
    redis.call('PEXPIRE', done, names.keep_group)
    if redis.call('HLEN', done) < size then return end
    local id, job, queue, delay, priority, fair, before, after = unpack(redis.call(
        'HMGET', key, 'id', 'job', 'queue', 'delay', 'priority', 'fair', 'payload', 'payload_after_results'))
    if before and id and queue then
        local payload = before
        if after and after ~= '' then payload = before .. results_in_order(done, size) .. after end
        put_next(
            {id = id, job = job, queue = queue, delay = delay, priority = priority, fair = fair, payload = payload},
            now_ms, names)
    end
    redis.call('HSET', key, 'called', now_ms)
    redis.call('HDEL', key, 'payload', 'payload_after_results')
    redis.call('DEL', done)
end

local function follow(follow_up, now_ms, names)
    if follow_up.put then put_next(follow_up.put, now_ms, names) end
    if follow_up.lock and try('GET', follow_up.lock[1]) == follow_up.lock[2] then redis.call('DEL', follow_up.lock[1]) end
    if follow_up.group then member_done(follow_up.group, now_ms, names) end
end
