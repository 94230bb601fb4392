"""Every key in Redis, in one place: plain types with plain names, to be read and written with `redis-cli`.

`SCHEMA` is the table: `worker keys` prints it, and docs/reference/keys.md holds it.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

JOB = "arq:job:"
IN_PROGRESS = "arq:in-progress:"
RETRY = "arq:retry:"
RESULT = "arq:result:"
ABORT = "arq:abort"
HEALTH_SUFFIX = ":health-check"

RUN = "worker:run:"
JOBS = "worker:jobs"
WORKERS = "worker:workers"
EVENTS = "worker:events"
PAUSED = "worker:paused"
CANCELLED = "worker:cancelled"
PARKED = "worker:parked"
PARKED_RUNS = "worker:parked:"
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
GROUP = "worker:group:"
DRAINED = "worker:drain"
RETRIED = "worker:retry"
DEAD = "worker:dead"
DEAD_AT = "worker:dead:at"
PRUNED = "worker:pruned"
CRON = "worker:cron"


def priority_line(queue: str, priority: int) -> str:
    """Return the key of the line of the jobs of a queue that have a priority."""
    return f"{PRIORITY}{priority}:{queue}"


#: In `worker:paused`: every job.
ALL = "*"

Type = Literal["string", "hash", "set", "sorted set", "stream"]
#: What TYPE answers, where that is another word.
TYPE_ANSWERS = {"sorted set": "zset"}


class Key(NamedTuple):
    """A key, or all keys of one form.

    Attributes:
        name: with `<id>` and the like for what varies.
        type: of its value.
        holds: what.
        lives: how long, or what makes it small again.
        written_by: us, arq's clients and workers as well, or operators.
    """

    name: str
    type: Type
    holds: str
    lives: str
    written_by: Literal["arq", "worker", "operator"] = "worker"

    def fits(self, key: str) -> bool:
        """Tell whether a key is of this form."""
        return re.fullmatch(re.sub(r"<[^>]*>", ".+", self.name), key, re.DOTALL) is not None


SCHEMA = (
    Key("arq:queue", "sorted set", "ids of the jobs that wait or run, by due time in ms", "until the job ends", "arq"),
    Key(
        JOB + "<id>",
        "string",
        'the payload, JSON: `{"f": name, "k": {arguments}}`, and more (`payload.py`)',
        "until the job ends",
        "arq",
    ),
    Key(
        IN_PROGRESS + "<id>",
        "string",
        "the lease: name of the worker that has the job, and a mark of its process",
        "`worker.lease_seconds`, renewed",
        "arq",
    ),
    Key(RETRY + "<id>", "string", "number of the claim, from 1", "until the job ends", "arq"),
    Key(RESULT + "<id>", "string", "the end, JSON", "`worker.result_ttl_seconds`, or the job's `result_ttl`", "arq"),
    Key(
        ABORT,
        "sorted set",
        "orders of stock arq clients to abort a job",
        "until the job ends; a day where there is no such job",
        "arq",
    ),
    Key("arq:queue" + HEALTH_SUFFIX, "string", "last word of a worker, as stock arq has it", "11 s, renewed", "arq"),
    Key(
        RUN + "<id>",
        "hash",
        "job, state, rows, total, percent, rate, eta_seconds, batch_size, batch_ms, last_key, step, worker, queue, "
        "attempt, takeovers, throttled, throttled_since, throttled_until, error",
        "`worker.result_ttl_seconds` after its end, 60 s at least",
    ),
    Key(JOBS, "hash", "how many runs have ended, by `<job>:<state>`", "for good: a field for each job and state"),
    Key(
        WORKERS,
        "hash",
        "each worker's pid, host, state, queue and jobs, and when it was last seen: JSON by name",
        "until the worker ends; 60 s after its last word",
    ),
    Key(
        EVENTS,
        "stream",
        "started, resumed, retry, drained, paused, stalled, lost, succeeded, dead, cancelled, worker_started, "
        "worker_stopped",
        "the last 10,000",
    ),
    Key(
        DEAD,
        "hash",
        "what has failed for good, with job, payload, error, traceback, attempts: JSON by id",
        "`worker.dead_letter_ttl_days`",
    ),
    Key(DEAD_AT, "sorted set", "ids of what has failed for good, by the time in ms when it did", "as they do there"),
    Key(PRUNED, "string", "when what is too old was last looked for", "an hour"),
    Key(CRON, "hash", "last due time in ms that was enqueued, by job and cron line", "for good: a field for each line"),
    Key(
        LIMIT + "<job>",
        "sorted set",
        "ids of the runs of a limited job, `:<value>` behind it with `concurrency_key`",
        "a run's until it ends; a week after the last began",
    ),
    Key(
        HELD + "<job>",
        "sorted set",
        "ids of the runs that wait for a place, the longest wait first",
        "a run's until it has one; a day after the last came",
    ),
    Key(
        RATE + "<job>", "string", "moment in ms before which the next run does not conform to the rate", "1 s after it"
    ),
    Key(
        RESERVED + "<id>",
        "string",
        "the run has its moment reserved, and passes the rate then",
        "until it passes, a day after that moment at most",
    ),
    Key(
        UNIQUE + "<job>:<mark>",
        "string",
        "id of the run that is the one with these arguments",
        "until that run ends well, or as long as `unique_for=` says; a week at most otherwise",
    ),
    Key(
        PRIORITY + "<n>:<queue>",
        "sorted set",
        "ids of the queue's jobs that have this priority, by due time in ms; the queue has them, too",
        "until the job ends",
    ),
    Key(PRIORITIES + "<queue>", "sorted set", "the priorities in use, each its own score", "until its line is empty"),
    Key(
        GROUP + "<id>:done",
        "hash",
        "the members of a group that are done: results, if they are wanted, by place",
        "until the callback is in its queue, 30 days after the last change at most",
    ),
    Key(
        GROUP + "<id>",
        "hash",
        "a group: size, complete_when, and its callback: id, job, queue, delay, priority, payload, called",
        "30 days after the last member was done",
    ),
    Key(
        RUNNING + "<queue>",
        "sorted set",
        "ids of the runs of a queue with a limit, by the time in ms at which they began",
        "a run's until it ends; a week after the last began",
    ),
    Key(
        PAUSED,
        "set",
        "orders: run ids, job names, queues, or `*` for all",
        "until taken back; a run's until it ends",
        "operator",
    ),
    Key(
        PARKED_RUNS + "<order>",
        "hash",
        "paused runs that are not claimed until their order is taken back: due time in ms and queue, by id",
        "until the order is taken back",
    ),
    Key(PARKED, "set", "the entries of `worker:paused` for which runs are parked", "until they are taken back"),
    Key(CANCELLED, "set", "orders: run ids", "until the run ends", "operator"),
    Key(
        PACE,
        "hash",
        "orders: rows a second by run id, job name, or `*` for all",
        "until taken back; a run's until it ends",
        "operator",
    ),
    Key(
        LIMITS,
        "hash",
        "orders: runs at once by job name, instead of its `concurrency=`, or by queue",
        "until taken back",
        "operator",
    ),
    Key(RATES, "hash", "orders: runs a second by job name, instead of its `rate=`", "until taken back", "operator"),
    Key(DRAINED, "set", "orders: names of workers that are to end", "until that worker has ended", "operator"),
    Key(RETRIED, "set", "orders: ids of runs that have failed and are to be run again", "until obeyed", "operator"),
)


def find(key: str, queue: str = "arq:queue") -> Key | None:
    """Return what the schema says of a key; None for one that it does not know.

    Args:
        key: as it is in Redis.
        queue: name of the queue that `arq:queue` stands for.
    """
    if key == queue or key == queue + HEALTH_SUFFIX:
        key = "arq:queue" + key.removeprefix(queue)
    return next((one for one in SCHEMA if one.fits(key)), None)


def as_markdown() -> str:
    """Return the schema as a table: what docs/reference/keys.md holds."""
    rows = [f"| `{one.name}` | {one.type} | {one.holds} | {one.lives} |" for one in SCHEMA]
    return "\n".join(["| key | type | holds | lives |", "| --- | --- | --- | --- |", *rows])


if __doc__:  # python -OO strips docstrings
    __doc__ += "\n" + as_markdown()
