"""One immutable model for each section of `settings.toml`."""

from __future__ import annotations

from datetime import time
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from worker.settings.urls import DEFAULT_NAMESPACE, asyncpg_url, check_namespace, parse_redis_url

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
PositiveInt = Annotated[int, Field(ge=1)]


def parse_window(hours: str, timezone: str) -> tuple[time, time, ZoneInfo]:
    """Return begin, end and time zone of a daily window such as `01:00-06:00`, which may span midnight.

    Raises:
        ValueError: The window or the time zone is invalid.
    """
    begin, dash, end = hours.partition("-")
    try:
        if not dash:
            raise ValueError
        times = [time.fromisoformat(each.strip()) for each in (begin, end)]
    except ValueError:
        raise ValueError(f"invalid window {hours!r}: write begin and end, e.g. 01:00-06:00") from None
    try:
        return times[0], times[1], ZoneInfo(timezone)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"unknown time zone {timezone!r}: write e.g. Europe/London") from None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DatabaseSettings(_Section):
    """PostgreSQL: its URL, and the connection pool of a process."""

    url: str = Field(
        "postgresql://localhost/longhaul",
        description="URL of the database. `postgres://` and `postgresql://` are accepted. "
        "`?sslmode=` (disable, prefer, require, verify-ca, verify-full) selects TLS; `sslrootcert`, `sslcert` and "
        "`sslkey` name files.",
    )
    replica_url: str | None = Field(
        None,
        description="URL of a replica that `ctx.stream(..., replica=True)` reads from. Default: `url`.",
    )
    pgbouncer: bool | Literal["auto"] = Field(
        "auto",
        description="Whether connections go through PgBouncer in transaction mode. `auto` detects it on the first "
        "connection.",
    )
    pool_size: int | None = Field(
        None,
        ge=1,
        description="Connections kept open. Default: two for each of `worker.max_jobs` (one for the run, one "
        "for `ctx.session()` or the reader of a stream), and two for the worker itself.",
    )
    max_overflow: int | None = Field(
        None,
        ge=0,
        description="Connections beyond `pool_size`, closed after use. Default: `worker.max_jobs`.",
    )
    pool_timeout_seconds: float = Field(30.0, gt=0, description="Longest wait for a pooled connection.")
    pool_pre_ping: bool = Field(True, description="Test a connection before it is used.")
    pool_recycle_seconds: int = Field(3600, ge=-1, description="Age at which a connection is replaced; -1: never.")
    connect_timeout_seconds: float = Field(10.0, gt=0, description="Longest wait for a new connection.")
    answer_check_seconds: float = Field(
        5.0,
        gt=0,
        description="Wait for the answer to a command after which PostgreSQL is asked, by a new connection, whether it "
        "still works on the command. If it does not, or answers no new connection either, the connection is ended: "
        "[PostgreSQL in trouble](../how-to/postgresql-in-trouble.md).",
    )
    tcp_timeout_seconds: float = Field(
        30.0,
        ge=0,
        description="Time after which a connection is ended whose packets are not acknowledged, by TCP keepalives and "
        "`TCP_USER_TIMEOUT`, on both sides; 0: the settings of the operating systems.",
    )
    statement_timeout_seconds: float = Field(300.0, ge=0, description="Longest run of one statement; 0: no limit.")
    lock_timeout_seconds: float = Field(
        0.0,
        ge=0,
        description="Longest wait for a lock; 0: no limit. A batch that waits longer is retried at half its size.",
    )
    idle_in_transaction_timeout_seconds: float = Field(
        60.0,
        ge=0,
        description="Longest idle time inside a transaction, or inside a command that waits for its client; 0: no "
        "limit. It ends the transaction of a frozen worker, and so releases its locks.",
    )
    application_name: str = Field(
        "longhaul",
        max_length=20,
        description="Prefix of `application_name`, followed by the worker and the job.",
    )
    echo: bool = Field(False, description="Log every statement.")

    @field_validator("url", "replica_url")
    @classmethod
    def _asyncpg_url(cls, value: str | None) -> str | None:
        return None if value is None else asyncpg_url(value)


class RedisSettings(_Section):
    """Redis or Valkey: its URL and time limits."""

    url: str = Field(
        "redis://localhost:6379/0",
        description="A `redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://`, `rediss+sentinel://`, "
        "`redis+cluster://` or `rediss+cluster://` URL: [Connect to Redis](../how-to/connect-to-redis.md).",
    )
    namespace: str | None = Field(
        None,
        description="Name of this queue among those of one Redis: all keys begin with `{namespace}:`, so that a "
        "cluster keeps them in one hash slot. The URL can have it as `?namespace=`. Default: plain names; in a cluster "
        "`longhaul`. [Namespaces](../how-to/use-namespaces.md).",
    )
    connect_timeout_seconds: float = Field(5.0, gt=0, description="Longest wait for a connection.")
    command_timeout_seconds: float = Field(10.0, gt=0, description="Longest wait for a reply.")

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        parse_redis_url(value)
        return value

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, value: str | None) -> str | None:
        return None if value is None else check_namespace(value)

    @model_validator(mode="after")
    def _check_one_namespace(self) -> RedisSettings:
        in_url = parse_redis_url(self.url).namespace
        if self.namespace is not None and in_url not in (None, self.namespace):
            raise ValueError(f"redis.namespace is {self.namespace!r}, and redis.url has namespace={in_url}: keep one")
        return self

    @property
    def prefix(self) -> str:
        """The beginning of all keys: `{namespace}:`, or nothing."""
        place = parse_redis_url(self.url)
        name = self.namespace or place.namespace or (DEFAULT_NAMESPACE if place.cluster else None)
        return f"{{{name}}}:" if name else ""


class WorkerSettings(_Section):
    """The worker process: queues, concurrency, time limits and retention."""

    name: str | None = Field(
        None,
        max_length=40,
        pattern=r"^[\w.@-]+$",
        description="Name of this worker. Default: host name and process id.",
    )
    packages: list[str] = Field(["jobs"], min_length=1, description="Packages to search for `@job` functions.")
    middleware: list[str] = Field(
        [], description="Middleware around each enqueue and each attempt, as `module:name`, outermost first."
    )
    queue: str = Field("arq:queue", min_length=1, description="Queue to take jobs from: a sorted set, arq's own.")
    queues: dict[str, PositiveInt] = Field(
        {},
        description="Several queues with their weights, e.g. `{ 'arq:urgent' = 9, 'arq:queue' = 1 }`. "
        "Overrides `queue`.",
    )
    queue_order: Literal["weighted", "strict"] = Field(
        "weighted", description="Serve several queues in proportion to their weights, or always the heaviest first."
    )
    queue_limits: dict[str, PositiveInt] = Field(
        {}, description="Most jobs of a queue that run at once, over all workers, e.g. `{ 'arq:heavy' = 2 }`."
    )
    max_jobs: int = Field(10, ge=1, description="Most jobs that run at once in this process.")
    max_attempts: int = Field(5, ge=1, description="Attempts without progress after which a run ends as dead.")
    max_threads: int = Field(8, ge=1, description="Most plain `def` jobs that run at once, each in a thread.")
    max_job_processes: int | None = Field(
        None,
        ge=1,
        description="Most jobs with `run_in='process'` that run at once. Default: the number of CPUs.",
    )
    job_timeout_seconds: float = Field(
        300.0, gt=0, description="Longest run of a job without a durable loop. Walks have no limit."
    )
    grace_period_seconds: float = Field(
        30.0,
        ge=0,
        description="Time for an interrupted job (timeout, cancel, stall) to clean up. After it the job is "
        "abandoned, and its slot is freed.",
    )
    stall_timeout_seconds: float = Field(
        600.0,
        gt=0,
        description="Time without progress (no batch, no `ctx.progress`) after which a run is reported as stalled.",
    )
    backoff_base_seconds: float = Field(2.0, gt=0, description="Wait before the second attempt. It doubles each time.")
    backoff_max_seconds: float = Field(600.0, gt=0, description="Longest wait between two attempts.")
    lease_seconds: float = Field(10.0, ge=0.5, description="Lifetime of a claim that is not renewed.")
    loop_block_tolerance_seconds: float = Field(
        60.0, gt=0, description="How long leases are still renewed while the event loop is blocked."
    )
    yield_seconds: float = Field(
        300.0,
        ge=0,
        description="Time after which a walk goes back to the queue at its next boundary, at no cost, if other runs "
        "wait for its slot; 0: never. [Share slots](../how-to/share-slots.md).",
    )
    drain_timeout_seconds: float = Field(
        30.0, ge=0, description="Time for running jobs to reach a batch boundary after SIGTERM."
    )
    poll_interval_seconds: float = Field(0.2, gt=0, le=5, description="Pause between two polls of an empty queue.")
    rescue_interval_seconds: float = Field(10.0, gt=0, description="Pause between two searches for orphaned runs.")
    relay: bool = Field(
        True,
        description="Whether this worker moves runs from the outbox to the queue: "
        "[Enqueue in a transaction](../how-to/enqueue-in-a-transaction.md).",
    )
    outbox_poll_seconds: float = Field(
        1.0,
        gt=0,
        le=30,
        description="Pause between two looks at the outbox where PostgreSQL does not announce new rows: through "
        "PgBouncer, and in all workers but one.",
    )
    result_ttl_seconds: float = Field(
        3600.0, ge=0, le=3.2e9, description="How long Redis keeps results and mirrors of runs."
    )
    dead_letter_ttl_days: float = Field(30.0, ge=0, le=36_500, description="How long Redis keeps dead letters.")
    run_retention_days: float = Field(
        30.0,
        ge=0,
        le=36_500,
        description="How long the ledger keeps finished runs, dead ones included. Runs with quarantined rows stay; "
        "0: no limit.",
    )
    max_payload_bytes: int = Field(
        4_194_304,
        ge=1024,
        description="Largest payload, with its arguments, that a client enqueues and a worker reads.",
    )
    max_result_bytes: int = Field(1_048_576, ge=1, description="Largest result, as JSON, that is stored.")
    cron_catch_up: Literal["once", "skip"] = Field(
        "once", description="Cron times that passed while no worker ran: run the job once, or skip them."
    )
    accept_pickle: bool = Field(
        False, description="Read pickles of stock arq clients. Only plain types are read: no code of a pickle runs."
    )
    uvloop: bool = Field(True, description="Use uvloop's event loop if it is installed.")


class BatchSettings(_Section):
    """The durable loops."""

    size: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Rows in a batch, unless the loop sets `size=`. `auto`: as many as take `target_seconds`.",
    )
    target_seconds: float = Field(0.5, gt=0, description="Duration of a batch that `auto` aims at.")
    first_size: int = Field(1000, ge=1, description="Rows in the first batch of `auto`.")
    min_size: int = Field(100, ge=1, description="Fewest rows of `auto`, but for a slow pace.")
    max_size: int = Field(20_000, ge=1, description="Most rows of `auto`: a batch must fit in memory.")
    max_bytes: int = Field(
        64_000_000, ge=1, description="Most bytes of the rows in a batch of `auto`, by the weight of a row."
    )
    max_snapshot_seconds: float = Field(
        3600,
        ge=0,
        description="Age at which a stream takes a new snapshot and continues after its last partition; 0: never.",
    )
    copy_from_rows: int = Field(200, ge=1, description="Number of rows from which on `bulk.insert` uses COPY.")


class ThrottleSettings(_Section):
    """Conditions under which a walk waits between two batches. None is set by default."""

    max_rows_per_second: float | None = Field(None, gt=0, description="Rows per second, for each walk.")
    max_replication_lag_seconds: float | None = Field(
        None, gt=0, description="Lag of the slowest replica (`pg_stat_replication`), or of this server if it is one."
    )
    max_active_sessions: int | None = Field(
        None, ge=0, description="Sessions that run a statement, of all roles that this one may see (`pg_monitor`)."
    )
    max_lock_waiters: int | None = Field(None, ge=0, description="Sessions that wait for a lock.")
    max_wal_bytes_per_second: float | None = Field(None, gt=0, description="WAL written by the whole server.")
    checkpoint_cooldown_seconds: float | None = Field(
        None, gt=0, description="Pause after a checkpoint of PostgreSQL that WAL volume has forced early."
    )
    max_dead_row_ratio: float | None = Field(
        None, gt=0, lt=1, description="Share of dead rows in the walked table, from 10,000 dead rows on."
    )
    wait_for_vacuum: bool = Field(False, description="Wait while the walked table is being vacuumed.")
    min_free_connections: int | None = Field(None, ge=0, description="Connections of the server that stay free.")
    window: str | None = Field(None, description="Time of day in which walks run, e.g. `01:00-06:00`.")
    window_timezone: str = Field("UTC", description="Time zone of the window, e.g. `Europe/London`.")
    check_interval_seconds: float = Field(1.0, gt=0, description="Pause between two checks of these conditions.")

    @model_validator(mode="after")
    def _check_window(self) -> ThrottleSettings:
        if self.window is not None:
            parse_window(self.window, self.window_timezone)
        return self


class WebSettings(_Section):
    """The HTTP API, `worker web`."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65_535, description="Port to listen on; 0: any free one.")
    tokens_file: str | None = Field(
        None,
        min_length=1,
        description="File with the hashes of the tokens, which `worker web token` writes. Without it, the API answers "
        "only requests from this machine.",
    )
    max_body_bytes: int = Field(4_194_304, ge=1024, description="Largest body of a request.")
    failed_tokens_per_minute: int = Field(
        10, ge=1, description="Requests without a valid token after which an address is refused for a minute."
    )
    trusted_proxies: list[str] = Field(
        [], description="Addresses of reverse proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed."
    )
    refresh_seconds: float = Field(
        0.5, gt=0, le=60, description="Age up to which requests share what was read from Redis and PostgreSQL."
    )
    max_subscribers: int = Field(1000, ge=1, description="Most streams of events that are open at once.")
    session_hours: float = Field(
        168.0, gt=0, le=24 * 366, description="How long a session of the page lasts after its login by a token."
    )
    idempotency_hours: float = Field(
        24.0, gt=0, le=24 * 366, description="How long Redis remembers an `Idempotency-Key`."
    )


class MetricsSettings(_Section):
    """Metrics and health over HTTP: `/metrics`, `/healthz` and `/readyz`."""

    port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port of a worker; 0: any free one. Default: none, so that a worker listens nowhere. "
        "[Monitor with Prometheus](../how-to/monitor-with-prometheus.md).",
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on. There are no tokens: open it to the network of Prometheus and of the "
        "orchestrator alone.",
    )
    refresh_seconds: float = Field(
        5.0, gt=0, le=300, description="Pause between two reads of queues and outbox, whatever the number of scrapes."
    )
    answer_seconds: float = Field(
        2.0, gt=0, le=60, description="Longest wait for an answer of PostgreSQL and of Redis in `/readyz`."
    )


class TracingSettings(_Section):
    """Traces and metrics by OpenTelemetry (extra `opentelemetry`)."""

    enabled: bool = Field(
        False, description="Whether clients and workers make spans: [Trace runs](../how-to/tracing.md)."
    )
    setup: str | None = Field(
        None,
        description="Function that sets up OpenTelemetry, as `module:name`. It is called once in each process. Without "
        "it, the application or `opentelemetry-instrument` does that.",
    )
    batch_spans: int = Field(
        100,
        ge=0,
        description="Batches of an attempt that have a span each. Of later batches, every second one has, then every "
        "fourth, and so on: half as many spans again each time the number of batches doubles. 0: none.",
    )


class LogSettings(_Section):
    """The log."""

    level: LogLevel = Field("INFO", description="Lowest severity to log.")
    levels: dict[str, LogLevel] = Field(
        {}, description="Lowest severity of single loggers, e.g. `{ 'longhaul.jobs' = 'DEBUG' }`."
    )
    format: Literal["text", "json"] = Field("text", description="Text for people, or one JSON object per line.")
    run_lines: int = Field(200, ge=0, le=10_000, description="Most lines of its log that are kept with a run; 0: none.")
    run_bytes: int = Field(131_072, ge=1024, description="Most bytes of the lines that an attempt keeps with its run.")
