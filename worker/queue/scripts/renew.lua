-- Renew the leases of one worker, and with them the times at which its jobs are due again.
--
-- A lease that has expired is taken back where nobody else has the job, and its due time is still one of a job that runs
-- (ack_and_claim.lua): one that was put back meanwhile, by a requeue that overtook this call, is for whoever comes. The time need
-- not be ours: a replica that has become the primary may have an older one. One that is another worker's is lost. Where
-- the queue does not know the job any more, it was ended by somebody else, or Redis has lost its data: the worker puts it
-- back (restore.lua), and its fence in the ledger makes either harmless.
--
-- KEYS queues
-- ARGV owner, lease in ms, prefixes of lease, result, then for each job: id, place of its queue from 1
-- returns for each id: held, lost, gone

-- include clock.lua
-- include running_mark.lua
local again = time_ms() + ARGV[2]
local told = {}
for at = 5, #ARGV, 2 do
    local id, queue = ARGV[at], KEYS[tonumber(ARGV[at + 1])]
    local key = ARGV[3] .. id
    local holder = redis.call('GET', key)
    local answer = 'held'
    if holder == ARGV[1] then
        redis.call('PEXPIRE', key, ARGV[2])
        redis.call('ZADD', queue, 'XX', again + RUNNING_MARK, id)
    elseif holder or redis.call('EXISTS', ARGV[4] .. id) == 1 then
        answer = 'lost'
    else
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
    told[#told + 1] = answer
end
return told
