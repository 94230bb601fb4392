-- What follows an end (a part of other scripts, which give it its prefixes).
--
-- It is called once for each end: by the script that takes the job out of its queue, and only where it was there.
-- The next one of a chain is put into its queue. A member of a group is marked as done; the last one puts the callback
-- there, with the results of all in their order, if it wants them. A result that says that it was not begun is void.
-- The lock of a unique job that counts while it is in the queue goes with it, where it is still its own.
--
-- The hash of a group: size, complete_when (all_succeeded or all_finished), id, queue, delay, priority, payload, payload_after_results of its
-- callback, and called, the time in ms at which that was put there; beside it, `:done`, a hash of results by place.

-- include priority.lua

local function put_next(run, now_ms, names)
    if redis.call('SET', names.payload .. run.id, run.payload, 'NX') then
        local due = now_ms + run.delay
        redis.call('DEL', names.result .. run.id)
        redis.call('ZADD', run.queue, due, run.id)
        if tonumber(run.priority) > 0 then
            local line = names.priority .. run.priority .. ':' .. run.queue
            stand_in_line(names.priorities .. run.queue, line, run.priority, due, run.id)
        end
    end
end

local function results_in_order(done, size)
    local found, all = redis.call('HGETALL', done), {}
    for at = 1, #found, 2 do all[tonumber(found[at])] = found[at + 1] end
    return '[' .. table.concat(all, ',', 1, size) .. ']'
end

local function member_done(member, now_ms, names)
    local key = names.group .. member[1]
    local done = key .. ':done'
    local size, complete_when, called = unpack(redis.call('HMGET', key, 'size', 'complete_when', 'called'))
    if not size or called or (complete_when == 'all_succeeded' and not member[4]) then return end
    if redis.call('HSETNX', done, member[2], member[3]) == 0 then return end
    redis.call('PEXPIRE', key, names.keep_group)
    redis.call('PEXPIRE', done, names.keep_group)
    if redis.call('HLEN', done) < tonumber(size) then return end
    local id, queue, delay, priority, before, after =
        unpack(redis.call('HMGET', key, 'id', 'queue', 'delay', 'priority', 'payload', 'payload_after_results'))
    if before then
        local payload = before
        if after ~= '' then payload = before .. results_in_order(done, tonumber(size)) .. after end
        put_next({id = id, queue = queue, delay = delay, priority = priority, payload = payload}, now_ms, names)
    end
    redis.call('HSET', key, 'called', now_ms)
    redis.call('HDEL', key, 'payload', 'payload_after_results')
    redis.call('DEL', done)
end

local function follow(sequel, now_ms, names)
    if sequel.put then put_next(sequel.put, now_ms, names) end
    if sequel.lock and redis.call('GET', sequel.lock[1]) == sequel.lock[2] then redis.call('DEL', sequel.lock[1]) end
    if sequel.group then member_done(sequel.group, now_ms, names) end
end
