-- Enqueue runs of the outbox, each row once (see enqueue.lua).
--
-- The row is deleted in PostgreSQL after this script. A relay that dies in between leaves the row, and the next relay
-- calls this script with it again, perhaps long after the run has ended and its result has expired. So the script also
-- adds the mark of each row to a sorted set, and passes over a row whose mark is there. worker/runtime/relay.py deletes
-- marks whose row is gone.
--
-- A relay may be frozen between its look at the row and this script, lose its lock on the row, and wake up after another
-- relay has enqueued the run and the mark is deleted. So each call has a time after which it changes nothing, and marks
-- live longer than that.
--
-- A row whose queue is not a sorted set is not enqueued and gets no mark. A row whose id is known is marked as well: that
-- is decided once.
--
-- KEYS marks, cancelled
-- ARGV time in ms after which the call is void; lifetime of the set of marks in ms; prefixes of payloads, results,
--      leases, locks, levels and lines of priority; lifetime in ms of the result of a duplicate; then for successive rows that have these in common: JSON with queue,
--      level, fair, and of some replace, lock, counts, lock_ms; number of rows; and of each row id, payload, mark, and
--      due time in ms ('' for now)
-- returns {for each row 1 if it was enqueued, 2 if it replaced a run, 0 if its id is known, -1 if it was enqueued by an
--         earlier call, -2 if its queue is not a sorted set; the problems}, or 'late'

-- include clock.lua
-- include checks.lua
-- include priority.lua
-- include fair.lua
-- include enqueue_run.lua
local marks, now_ms = KEYS[1], time_ms()
if now_ms > tonumber(ARGV[1]) then return 'late' end
if not has_type(marks, 'zset') then return {{}, problems} end
local names = {payload = ARGV[3], result = ARGV[4], lease = ARGV[5], priority = ARGV[8]}
names.cancelled = redis.call('EXISTS', KEYS[2]) == 1 and has_type(KEYS[2], 'set') and KEYS[2]
local answers = {}

-- Write the result of a run that is dropped, or has replaced another one, because a run of its unique job exists. A
-- caller that waits for it then waits for that run (run.py).
local function point_to(kept, run)
    local is_read, values = pcall(cjson.decode, run.payload)
    local now = string.format('%.0f', now_ms)
    redis.call('SET', names.result .. run.id, table.concat({
        '{"f":', cjson.encode(is_read and values.f or ''), ',"a":[],"k":{},"t":1,"et":', now, ',"st":', now, ',"ft":',
        now, ',"q":', cjson.encode(run.queue), ',"id":', cjson.encode(run.id), ',"s":false,"cancelled":true,"kept":',
        cjson.encode(kept), ',"r":', cjson.encode('dropped as a duplicate of the run ' .. kept), '}'
    }), 'PX', ARGV[9], 'NX')
end

local function relay_row(run, id, payload, mark, due)
    if not run.is_sound then return -2 end
    if redis.call('ZSCORE', marks, mark) then return -1 end
    run.id, run.payload, run.due = id, payload, tonumber(due) or now_ms
    local answer, kept = enqueue_run(run, names)
    if kept ~= id then point_to(kept, run) end
    redis.call('ZADD', marks, now_ms, mark)
    return answer
end

local at = 10
while at < #ARGV do
    local run, last = cjson.decode(ARGV[at]), at + 1 + 4 * ARGV[at + 1]
    run.levels = ARGV[7] .. run.queue
    run.lock = run.lock and ARGV[6] .. run.lock or false
    run.is_sound = has_type(run.queue, 'zset')
    for row = at + 2, last, 4 do
        if row == at + 2 or run.level ~= '0' then run.in_use = try('ZRANGE', run.levels, 0, -1) end
        answers[#answers + 1] = relay_row(run, ARGV[row], ARGV[row + 1], ARGV[row + 2], ARGV[row + 3])
    end
    at = last + 1
end
redis.call('PEXPIRE', marks, ARGV[2])
return {answers, problems}
