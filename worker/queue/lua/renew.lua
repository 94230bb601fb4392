-- Renew the leases of one worker.
--
-- A lease that has expired is taken back where nobody else has the job, and its due time is still the one that it was
-- claimed with: one that was put back meanwhile, by a requeue that overtook this call, is for whoever comes. One that is another worker's is lost. Where
-- the queue does not know the job any more, it was ended by somebody else, or Redis has lost its data: the worker
-- puts it back (restore.lua), and its fence in the ledger makes either harmless.
--
-- KEYS queue
-- ARGV owner, lease in ms, prefixes of lease, result, then id and due time of each
-- returns for each id: held, lost, gone
local told = {}
for at = 5, #ARGV, 2 do
    local id = ARGV[at]
    local key = ARGV[3] .. id
    local holder = redis.call('GET', key)
    local answer = 'held'
    if holder == ARGV[1] then
        redis.call('PEXPIRE', key, ARGV[2])
    elseif holder or redis.call('EXISTS', ARGV[4] .. id) == 1 then
        answer = 'lost'
    else
        local due = redis.call('ZSCORE', KEYS[1], id)
        if not due then
            answer = 'gone'
        elseif tonumber(due) == tonumber(ARGV[at + 1]) then
            redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
        else
            answer = 'lost'
        end
    end
    told[#told + 1] = answer
end
return told
