-- The mark of a running job (included in other scripts).
--
-- A running job stays in its queue, due when its lease expires. Its due time has a fraction of half a millisecond,
-- unlike that of a waiting job. So a claim detects that the lease of a previous worker has expired, and a late renewal
-- detects that the job was requeued in the meantime. claims.py has the same constant.
local RUNNING_MARK = 0.5

local function is_running(due)
    return due % 1 == RUNNING_MARK
end
