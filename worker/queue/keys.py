"""Every key in Redis, in one place: plain types with plain names, to be read and written with `redis-cli`.

arq's own keys, in its wire format:

| key | type | holds |
| --- | --- | --- |
| `arq:queue` | sorted set | ids of the jobs that wait or run, by due time in ms |
| `arq:job:<id>` | string | the payload, JSON: `{"f": name, "k": {arguments}}`, and more (see `codec.py`) |
| `arq:in-progress:<id>` | string | the lease: `<worker>:<mark of its process>`; lives `worker.lease_seconds` |
| `arq:retry:<id>` | string | number of the claim, from 1 |
| `arq:result:<id>` | string | the end, JSON; lives `worker.keep_result_seconds` |
| `arq:abort` | sorted set | orders of stock arq clients to abort a job |

Longhaul's:

| key | type | holds |
| --- | --- | --- |
| `worker:run:<id>` | hash | what a run does: state, rows, total, percent, rate, eta, worker, error ... |
| `worker:jobs` | hash | how many runs of each job have ended: number by `<job>:<state>` |
| `worker:workers` | hash | name of each worker: JSON with pid, jobs, when last seen |
| `worker:events` | stream | what happened: started, retried, taken over, ended ... |
| `worker:paused` | set | orders: run ids, job names, or `*` for all |
| `worker:cancelled` | set | orders: run ids |
| `worker:pace` | hash | orders: rows a second by run id, job name, or `*` for all |
| `worker:limits` | hash | orders: runs at once by job name, instead of its `limit=` |
| `worker:rates` | hash | orders: runs a second by job name, instead of its `rate=` |
| `worker:limit:<job>` | sorted set | ids of the runs of a limited job, `:<value>` behind it with `limit_by` |
| `worker:held:<job>` | sorted set | ids of the runs that wait for a place, the longest wait first |
| `worker:rate:<job>` | string | moment in ms before which the next run does not conform to the rate |
| `worker:reserved:<id>` | string | the run has its moment reserved, and passes the rate then |
| `worker:unique:<job>:<mark>` | string | id of the run that is the one with these arguments |
| `worker:dead` | hash | dead letters: what could not be run, JSON by id |
| `worker:cron` | hash | last due time in ms that was enqueued, by job and cron line |
"""

from __future__ import annotations

JOB = "arq:job:"
IN_PROGRESS = "arq:in-progress:"
RETRY = "arq:retry:"
RESULT = "arq:result:"
ABORT = "arq:abort"

RUN = "worker:run:"
JOBS = "worker:jobs"
WORKERS = "worker:workers"
EVENTS = "worker:events"
PAUSED = "worker:paused"
CANCELLED = "worker:cancelled"
PACE = "worker:pace"
LIMITS = "worker:limits"
RATES = "worker:rates"
LIMIT = "worker:limit:"
HELD = "worker:held:"
RATE = "worker:rate:"
RESERVED = "worker:reserved:"
UNIQUE = "worker:unique:"
DEAD = "worker:dead"
RETRIED = "worker:retry"
DRAINED = "worker:drain"
PRUNED = "worker:pruned"
CRON = "worker:cron"

#: In `worker:paused`: every job.
ALL = "*"
