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
--      leases, locks, levels and lines of priority; then of each row: id, payload, mark, due time in ms ('' for now),
--      and JSON: queue, level, fair, and of some replace, lock, counts, lock_ms
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
local names = {payload = ARGV[3], result = ARGV[4], lease = ARGV[5], priority = ARGV[8], cancelled = KEYS[2]}
local described, answers = {}, {}
for at = 9, #ARGV, 5 do
    local text, mark, answer = ARGV[at + 4], ARGV[at + 2], -2
    local run = described[text]
    if not run then
        run = cjson.decode(text)
        run.levels = ARGV[7] .. run.queue
        run.lock = run.lock and ARGV[6] .. run.lock or false
        run.is_sound = has_type(run.queue, 'zset')
        described[text] = run
    end
    if run.is_sound then
        if redis.call('ZSCORE', marks, mark) then
            answer = -1
        else
            run.id, run.payload, run.due = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 3]) or now_ms
            answer = enqueue_run(run, names)
            redis.call('ZADD', marks, now_ms, mark)
        end
    end
    answers[#answers + 1] = answer
end
redis.call('PEXPIRE', marks, ARGV[2])
return {answers, problems}
