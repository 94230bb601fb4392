-- List the owners of unfinished ranges, other than one hand, with the backends of their runs.
-- A range whose owner's run has ended, or has another fence, has no owner any more: `is_running` is false.
SELECT step_range.number, step_range.owner, step_range.owner_fence,
       coalesce(run.state = 'running' AND run.fence = step_range.owner_fence, false) AS is_running,
       run.backend_pid, run.backend_start
  FROM worker.step_range
  LEFT JOIN worker.run ON run.id = step_range.owner
 WHERE step_range.run_id = :run_id AND step_range.step = :step AND NOT step_range.done
   AND step_range.error IS NULL AND step_range.owner <> :hand
