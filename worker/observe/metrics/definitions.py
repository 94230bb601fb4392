"""Every metric: its name, type, labels and meaning. docs/reference/metrics.md is generated from this table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Stands for all values of a label beyond its limit, and for names that this worker does not know.
OTHER = "other"
#: Most values of a label. Further ones count as `other`.
MOST_JOBS = 100
MOST_QUEUES = 20
MOST_STEPS = 20

#: Outcomes whose counters begin at 0, so that an alert sees the first one.
ALWAYS_SHOWN = ("succeeded", "failed", "dead", "incomplete")
#: How an attempt ends, as in the label `outcome`.
OUTCOMES = (
    *ALWAYS_SHOWN,
    "cancelled",
    "snoozed",
    "asleep",
    "yielded",
    "paused",
    "released",
    "lost",
)

#: The label `reason` of a throttle by its kind; any other is `application`.
REASONS = {
    "pace": "pace",
    "time of day": "window",
    "replication lag": "replication_lag",
    "this replica lags": "replication_lag",
    "active sessions": "active_sessions",
    "sessions wait for locks": "lock_waiters",
    "of the table's rows are dead": "dead_rows",
    "the table is being vacuumed": "vacuum",
    "free connections": "free_connections",
    "WAL rate": "wal_rate",
    "forced checkpoint": "checkpoint",
    "paused": "paused",
    "other hands": "other_hands",
}
APPLICATION = "application"

_RUN_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 28800.0)
_LATENCY_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_BATCH_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LATE_SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: its name.
        kind: its type.
        help: its meaning, in one sentence.
        labels: names of its labels.
        buckets: upper bounds of a histogram, without infinity.
        merge: how the values of several processes become one.
        of_servers: whether it is a state of the servers: the same for all workers, and in `worker web` as well.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    merge: Literal["sum", "max", "min"] = "sum"
    of_servers: bool = False


JOBS = Metric(
    "longhaul_jobs_total",
    "counter",
    "Attempts that have ended, by outcome; `failed` is retried, and `dead` is not.",
    ("job", "outcome"),
)
ATTEMPTS = Metric("longhaul_attempts_total", "counter", "Attempts that have begun.", ("job",))
RUN_SECONDS = Metric(
    "longhaul_attempt_duration_seconds",
    "histogram",
    "Time from the begin of an attempt to its end.",
    ("job",),
    _RUN_SECONDS,
)
LATENCY_SECONDS = Metric(
    "longhaul_queue_latency_seconds",
    "histogram",
    "Time from the due time of a run to the begin of its attempt.",
    ("job", "queue"),
    _LATENCY_SECONDS,
)
LAST_SUCCESS = Metric(
    "longhaul_last_success_timestamp_seconds",
    "gauge",
    "Time at which this worker has last ended a run of the job as succeeded.",
    ("job",),
    merge="max",
)
TAKEOVERS = Metric(
    "longhaul_takeovers_total",
    "counter",
    "Attempts that continue a run whose worker had died or was frozen: its lease had expired.",
    ("job",),
)
LEASES_LOST = Metric(
    "longhaul_leases_lost_total", "counter", "Attempts that ended because another worker had taken the run.", ("job",)
)
ROWS = Metric("longhaul_rows_total", "counter", "Rows of committed batches.", ("job", "step"))
BATCHES = Metric("longhaul_batches_total", "counter", "Committed batches.", ("job", "step"))
BATCH_SECONDS = Metric(
    "longhaul_batch_duration_seconds",
    "histogram",
    "Time of a batch, from its read to the end of its commit.",
    ("job",),
    _BATCH_SECONDS,
)
THROTTLED = Metric(
    "longhaul_throttled_seconds_total",
    "counter",
    "Time that walks have waited between two batches, by reason.",
    ("job", "reason"),
)
QUARANTINED = Metric("longhaul_quarantined_rows_total", "counter", "Rows that went to the quarantine.", ("job", "step"))
STALLS = Metric("longhaul_stalls_total", "counter", "Attempts that made no progress for too long.", ("job",))
CRON_LATENESS = Metric(
    "longhaul_cron_lateness_seconds",
    "histogram",
    "Time from the due time of a cron line to the moment at which a worker has enqueued its run.",
    ("job",),
    _LATE_SECONDS,
)
SLOTS = Metric("longhaul_slots", "gauge", "Most jobs that run at once: worker.max_jobs.")
SLOTS_USED = Metric("longhaul_slots_in_use", "gauge", "Jobs that run now.")
POOL_SIZE = Metric("longhaul_pool_connections_max", "gauge", "Most connections to PostgreSQL of the worker's pool.")
POOL_USED = Metric("longhaul_pool_connections_in_use", "gauge", "Connections of the worker's pool that are in use.")
DRAINING = Metric("longhaul_draining", "gauge", "1 while the worker drains.", merge="max")
QUEUE_DUE = Metric(
    "longhaul_queue_due", "gauge", "Runs that are due and not claimed.", ("queue",), merge="max", of_servers=True
)
QUEUE_OLDEST = Metric(
    "longhaul_queue_oldest_due_seconds",
    "gauge",
    "Time for which the oldest of them has been due; 0 if there is none.",
    ("queue",),
    merge="max",
    of_servers=True,
)
QUEUE_ENTRIES = Metric(
    "longhaul_queue_entries",
    "gauge",
    "All runs of a queue: due, due later, and running.",
    ("queue",),
    merge="max",
    of_servers=True,
)
DEAD_LETTERS = Metric("longhaul_dead_letters", "gauge", "Dead letters.", merge="max", of_servers=True)
OUTBOX_ROWS = Metric(
    "longhaul_outbox_rows", "gauge", "Rows of the outbox that wait for a relay.", merge="max", of_servers=True
)
OUTBOX_OLDEST = Metric(
    "longhaul_outbox_oldest_seconds",
    "gauge",
    "Age of the oldest row of the outbox that waits for a relay; 0 if there is none.",
    merge="max",
    of_servers=True,
)
OUTBOX_REFUSED = Metric(
    "longhaul_outbox_refused_rows",
    "gauge",
    "Rows of the outbox that cannot be relayed; `worker doctor` names the reason.",
    merge="max",
    of_servers=True,
)
SERVER_UP = Metric(
    "longhaul_server_up",
    "gauge",
    "1 if the server has answered the last read, by server: `postgresql` or `redis`.",
    ("server",),
    merge="min",
    of_servers=True,
)

METRICS: tuple[Metric, ...] = (
    JOBS,
    ATTEMPTS,
    RUN_SECONDS,
    LATENCY_SECONDS,
    LAST_SUCCESS,
    TAKEOVERS,
    LEASES_LOST,
    ROWS,
    BATCHES,
    BATCH_SECONDS,
    THROTTLED,
    QUARANTINED,
    STALLS,
    CRON_LATENESS,
    SLOTS,
    SLOTS_USED,
    POOL_SIZE,
    POOL_USED,
    DRAINING,
    QUEUE_DUE,
    QUEUE_OLDEST,
    QUEUE_ENTRIES,
    DEAD_LETTERS,
    OUTBOX_ROWS,
    OUTBOX_OLDEST,
    OUTBOX_REFUSED,
    SERVER_UP,
)
BY_NAME = {metric.name: metric for metric in METRICS}


def as_markdown(metrics: Sequence[Metric] = METRICS) -> str:
    """Return the table of metrics for docs/reference/metrics.md."""
    lines = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for one in metrics:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        lines.append(f"| `{one.name}` | {one.kind} | {labels} | {one.help} |")
    return "\n".join(lines) + "\n"
