"""Every key in Redis: plain types with plain names, which `redis-cli` can read and write.

`SCHEMA` is the table. `worker keys` prints it, and docs/reference/keys.md contains it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal, NamedTuple

JOB = "arq:job:"
IN_PROGRESS = "arq:in-progress:"
RETRY = "arq:retry:"
RESULT = "arq:result:"
ABORT = "arq:abort"
HEALTH_SUFFIX = ":health-check"

RUN = "worker:run:"
LOG = "worker:log:"
JOBS = "worker:jobs"
WORKERS = "worker:workers"
EVENTS = "worker:events"
PAUSED = "worker:paused"
CANCELLED = "worker:cancelled"
PARKED = "worker:parked"
PARKED_RUNS = "worker:parked:"
UNKNOWN = "worker:unknown:"
AWAITED = "worker:awaited:"
PACE = "worker:pace"
LIMITS = "worker:limits"
RATES = "worker:rates"
LIMIT = "worker:limit:"
HELD = "worker:held:"
RATE = "worker:rate:"
RESERVED = "worker:reserved:"
UNIQUE = "worker:unique:"
PRIORITIES = "worker:priorities:"
PRIORITY = "worker:priority:"
RUNNING = "worker:running:"
FAIR_FLOWS = "worker:fair:flows:"
FAIR_TURNS = "worker:fair:turns:"
FAIR_LATER = "worker:fair:later:"
FAIR_NEXT = "worker:fair:next:"
GROUP = "worker:group:"
DRAINED = "worker:drain"
RETRIED = "worker:retry"
DEAD = "worker:dead"
DEAD_AT = "worker:dead:at"
PRUNED = "worker:pruned"
PROBE = "worker:probe"
CRON = "worker:cron"
RELAYED = "worker:relayed:"
IDEMPOTENT = "worker:idempotent:"
ORDERS = "worker:orders"
ORDERED = "worker:ordered"
_LONGEST_NAME = 200


def awaited(job: str, queue: str) -> str:
    """Return the key of the runs of a queue that wait for a worker that knows their job."""
    is_name = len(job) <= _LONGEST_NAME and job.isprintable()
    name = job if is_name else hashlib.sha256(job.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{AWAITED}{name}:{queue}"


def priority_line(queue: str, priority: int) -> str:
    """Return the key of the jobs of a queue that have one priority."""
    return f"{PRIORITY}{priority}:{queue}"


#: In `worker:paused`: every job.
ALL = "*"

Type = Literal["string", "hash", "set", "sorted set", "stream"]
#: The answers of TYPE that differ from these names.
TYPE_ANSWERS = {"sorted set": "zset"}


class Key(NamedTuple):
    """A key, or all keys of one form.

    Attributes:
        name: The name, with `<id>` and the like for the variable parts.
        type: The Redis type of its value.
        holds: A description of its value.
        lives: How long it exists, or the bound of its size.
        written_by: The writer: arq's clients and workers, too; Longhaul alone; or operators.
    """

    name: str
    type: Type
    holds: str
    lives: str
    written_by: Literal["arq", "worker", "operator"] = "worker"

    def fits(self, key: str) -> bool:
        """Return whether a key has this form."""
        return re.fullmatch(re.sub(r"<[^>]*>", ".+", self.name), key, re.DOTALL) is not None


SCHEMA = (
    Key("arq:queue", "sorted set", "ids of waiting and running jobs, by due time in ms", "until the job ends", "arq"),
    Key(
        JOB + "<id>",
        "string",
        'the payload, JSON: `{"f": name, "k": {arguments}}`, and further fields',
        "until the job ends",
        "arq",
    ),
    Key(
        IN_PROGRESS + "<id>",
        "string",
        "the lease: name of the worker that runs the job, and a mark of its process",
        "`worker.lease_seconds`, renewed",
        "arq",
    ),
    Key(RETRY + "<id>", "string", "number of the attempt, from 1", "until the job ends", "arq"),
    Key(
        RESULT + "<id>",
        "string",
        "the result or the error, JSON",
        "`worker.result_ttl_seconds`, or the job's `result_ttl`",
        "arq",
    ),
    Key(
        ABORT,
        "sorted set",
        "abort commands of stock arq clients",
        "until the job ends; a day if there is no such job",
        "arq",
    ),
    Key("arq:queue" + HEALTH_SUFFIX, "string", "health of a worker, in stock arq's format", "11 s, renewed", "arq"),
    Key(
        RUN + "<id>",
        "hash",
        "job, state, rows, total, percent, percent_is_estimate, percent_by, rate, eta_seconds, batch_size, batch_ms, "
        "last_key, step, hands, ranges, ranges_done, helps, worker, queue, attempt, takeovers, throttled, "
        "throttled_since, throttled_until, throttled_by, error",
        "`worker.result_ttl_seconds` after its end, at least 60 s",
    ),
    Key(
        LOG + "<id>",
        "stream",
        "the last lines of the run's log: time, level, logger, message, worker, attempt, step, run, exception, extra",
        "as long as `worker:run:<id>`, or the dead letter; at most `log.run_lines`, `log.run_bytes`",
    ),
    Key(JOBS, "hash", "number of ended runs, by `<job>:<state>`", "forever: one field for each job and state"),
    Key(
        WORKERS,
        "hash",
        "each worker's pid, host, state, queue and jobs, and when it was last seen: JSON by name",
        "until the worker ends; 60 s after its last update",
    ),
    Key(
        EVENTS,
        "stream",
        "started, resumed, retry, drained, paused, asleep, yielded, stalled, lost, succeeded, incomplete, dead, "
        "cancelled, worker_started, worker_stopped",
        "the last 10,000",
    ),
    Key(
        DEAD,
        "hash",
        "dead letters, with job, payload, error, traceback, attempts: JSON by id",
        "`worker.dead_letter_ttl_days`",
    ),
    Key(DEAD_AT, "sorted set", "ids of dead letters, by the time of failure in ms", "as long as the letters"),
    Key(PRUNED, "string", "time of the last pruning", "an hour"),
    Key(PROBE, "string", "test whether Redis accepts writes again", "a millisecond"),
    Key(
        CRON,
        "hash",
        "last due time in ms that was enqueued, by job, cron expression and application",
        "forever: one field for each",
    ),
    Key(
        RELAYED + "<application>",
        "sorted set",
        "marks of rows of the outbox that were enqueued, `<id>:<uuid>`, by time in ms",
        "each until its row is deleted, and at least two minutes; 30 days after the last addition",
    ),
    Key(
        LIMIT + "<job>",
        "sorted set",
        "ids of the running runs of a limited job; with `concurrency_key`, `:<value>` follows the name; of a "
        "value above 200 characters, or with letters that do not print, 20 digits of its SHA-256",
        "each until its run ends; a week after the last start",
    ),
    Key(
        HELD + "<job>",
        "sorted set",
        "ids of the runs that wait for a place, longest wait first",
        "each until its run has a place; a day after the last addition",
    ),
    Key(
        RATE + "<job>",
        "string",
        "time in ms before which the next run exceeds the rate, and ms between two runs",
        "1 s after it",
    ),
    Key(
        RESERVED + "<id>",
        "string",
        "time in ms that is reserved for the run, and ms between two runs of that rate",
        "until it passes; at most a day after that time",
    ),
    Key(
        UNIQUE + "<job>:<mark>",
        "string",
        "id of the unique run with these arguments",
        "until that run succeeds, or for `unique_for=`; at most a week otherwise",
    ),
    Key(
        PRIORITY + "<n>:<queue>",
        "sorted set",
        "ids of the queue's jobs with this priority, by due time in ms; they are in the queue, too",
        "until the job ends",
    ),
    Key(
        PRIORITIES + "<queue>",
        "sorted set",
        "the priorities in use, each with itself as score",
        "until no job has the priority",
    ),
    Key(
        FAIR_FLOWS + "<queue>",
        "hash",
        "weight and value of each run of a job with `fair_by`, by its id; of runs with a priority "
        "`worker:priority:<n>:<queue>` is in place of the queue",
        "each until its run ends; 30 days after the last addition",
    ),
    Key(
        FAIR_TURNS + "<queue>",
        "sorted set",
        "ids of those that wait and are due, by their turns",
        "until claimed; 30 days after the last addition",
    ),
    Key(
        FAIR_LATER + "<queue>",
        "sorted set",
        "ids of those that are due later, by due time in ms",
        "until due; 30 days after the last addition",
    ),
    Key(
        FAIR_NEXT + "<queue>",
        "sorted set",
        "the next turn of each value that had runs; `turn` is the turn that was claimed last",
        "until no such run is in the queue; 30 days after the last addition",
    ),
    Key(
        GROUP + "<id>:done",
        "hash",
        "finished members of a group: their results, if needed, by position",
        "until the callback is enqueued; at most 30 days after the last change",
    ),
    Key(
        GROUP + "<id>",
        "hash",
        "a group: size, complete_when, and its callback: id, job, queue, delay, priority, fair, payload; called, spans",
        "30 days after the last member finished",
    ),
    Key(
        RUNNING + "<queue>",
        "sorted set",
        "ids of the running runs of a queue with a limit, by start time in ms",
        "each until its run ends; a week after the last start",
    ),
    Key(
        IDEMPOTENT + "<hash>",
        "string",
        "the run of a request with an `Idempotency-Key`, JSON; the hash is of caller and key",
        "`web.idempotency_hours`",
    ),
    Key(
        ORDERS,
        "stream",
        "orders of operators: order, by, at, targets, details",
        "about the last 10,000; the ledger keeps all",
    ),
    Key(
        ORDERED,
        "hash",
        "the orders in force that are in `worker:orders`, by `<order> <name>`",
        "until the order ends",
    ),
    Key(
        PAUSED,
        "set",
        "operator command: run ids, job names, queues, `<job>?<argument>=<value>`, or `*` for all",
        "until removed; a run's until it ends",
        "operator",
    ),
    Key(
        PARKED_RUNS + "<order>",
        "hash",
        "paused runs that are not claimed until their entry is removed: due time in ms and queue, by id",
        "until the entry is removed",
    ),
    Key(
        AWAITED + "<job>:<queue>",
        "sorted set",
        "ids of runs whose job no worker knew when it claimed them, by the time in ms at which they are due again",
        "until a worker knows the job; 30 days after the last addition",
    ),
    Key(
        UNKNOWN + "<queue>",
        "sorted set",
        "ids of all runs of a queue whose job no worker knew, by the same time",
        "until that time; 30 days after the last addition",
    ),
    Key(PARKED, "set", "the entries of `worker:paused` for which runs are parked", "until they are removed"),
    Key(
        CANCELLED,
        "set",
        "operator command: run ids, or `<job>?<argument>=<value>`",
        "a run id until the run ends; else until removed",
        "operator",
    ),
    Key(
        PACE,
        "hash",
        "operator command: rows a second by run id, job name, or `*` for all",
        "until removed; a run's until it ends",
        "operator",
    ),
    Key(
        LIMITS,
        "hash",
        "operator command: most runs at once by job name, instead of its `concurrency=`, or by queue",
        "until removed",
        "operator",
    ),
    Key(
        RATES,
        "hash",
        "operator command: runs a second by job name, instead of its `rate=`",
        "until removed",
        "operator",
    ),
    Key(DRAINED, "set", "operator command: names of workers to drain", "until that worker has ended", "operator"),
    Key(RETRIED, "set", "operator command: ids of failed runs to run again", "until done", "operator"),
)


def find(key: str, queue: str = "arq:queue") -> Key | None:
    """Return the entry of a key in the schema; None for an unknown key.

    Args:
        key: The key in Redis.
        queue: The name of the queue that `arq:queue` stands for.
    """
    if key == queue or key == queue + HEALTH_SUFFIX:
        key = "arq:queue" + key.removeprefix(queue)
    return next((one for one in SCHEMA if one.fits(key)), None)


def as_markdown() -> str:
    """Return the schema as the table of docs/reference/keys.md."""
    rows = [f"| `{one.name}` | {one.type} | {one.holds} | {one.lives} |" for one in SCHEMA]
    return "\n".join(["| key | type | holds | lives |", "| --- | --- | --- | --- |", *rows])


if __doc__:  # python -OO strips docstrings
    __doc__ += "\n" + as_markdown()
