-- The mark of a running job (a part of other scripts).
--
-- A running job stays in its queue, due when its lease expires. Its due time ends in half a millisecond, and that of no
-- waiting job does: whoever claims such a job knows that the lease of its worker has expired, and a late renewal knows
-- whether the job was put back in the meantime. store.py has the same constant.
local RUNNING_MARK = 0.5

local function is_running(due)
    return due % 1 == RUNNING_MARK
end
