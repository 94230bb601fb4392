-- Renew the leases of a worker, and with them the due times of its jobs.
--
-- An expired lease is renewed if no other worker has the job and its due time is still that of a running job
-- (running_mark.lua). If a requeue overtook this call, the job waits for the next worker, and its lease is not renewed.
-- The due time may differ from the one that the worker wrote: a promoted replica may have an older one. If another
-- worker owns the lease, the job is lost. If the queue does not have the job, another worker has ended it, or Redis has
-- lost its data. In both cases the worker restores the job (restore.lua); the fence in the ledger rejects the writes of
-- a stale attempt.
--
-- If a lease or a queue has a wrong type, the worker keeps the job.
--
-- KEYS queues
-- ARGV owner, lease in ms, prefixes of leases and results, then for each job: id, index of its queue from 1
-- returns for each job: held, lost or gone

-- include clock.lua
-- include running_mark.lua
-- include checks.lua
local again = time_ms() + ARGV[2]
local answers = {}
for at = 5, #ARGV, 2 do
    local id, queue = ARGV[at], KEYS[tonumber(ARGV[at + 1])]
    local key = ARGV[3] .. id
    local holder = try('GET', key)
    local answer = 'held'
    if holder == ARGV[1] then
        redis.call('PEXPIRE', key, ARGV[2])
        try('ZADD', queue, 'XX', again + RUNNING_MARK, id)
    elseif holder or redis.call('EXISTS', ARGV[4] .. id) == 1 then
        answer = 'lost'
    elseif has_type(queue, 'zset') then
        local due = redis.call('ZSCORE', queue, id)
        if not due then
            answer = 'gone'
        elseif is_running(due) then
            redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
            redis.call('ZADD', queue, 'XX', again + RUNNING_MARK, id)
        else
            answer = 'lost'
        end
    end
    answers[#answers + 1] = answer
end
return answers
