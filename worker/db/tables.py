"""The ledger's tables, in the schema `worker` of the database that the jobs work on."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

SCHEMA = "worker"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={"pk": "%(table_name)s_pkey", "ix": "%(table_name)s_%(column_0_name)s_idx"},
)

RUN_STATES = ("waiting", "running", "paused", "succeeded", "incomplete", "dead", "cancelled")

run = Table(
    "run",
    metadata,
    Column("id", Text, primary_key=True, doc="id of the job in Redis"),
    Column("job", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("payload", Text, nullable=False, doc="arq's JSON payload, as it goes back to the queue"),
    Column("arguments", Text, nullable=False, doc="JSON of the arguments alone, to compare calls"),
    Column("state", Text, nullable=False),
    Column("fence", BigInteger, nullable=False, doc="grows with each takeover"),
    Column("owner", Text, doc="the worker that owns the run, or owned it last"),
    Column("backend_pid", Integer, doc="PostgreSQL backend of the run's own connection"),
    Column("backend_start", DateTime(timezone=True), doc="tells it from a later backend with the same pid"),
    Column("attempt", Integer, nullable=False, doc="attempts since the last one that committed a batch"),
    Column("batches_before", BigInteger, nullable=False, doc="committed batches when this attempt began"),
    Column("steps", Integer, nullable=False, server_default="0", doc="steps begun; fewer in `step` is damage"),
    Column("parent", Text, doc="of a helper run: the run whose walk it takes part in"),
    Column("parent_fence", BigInteger, doc="fence of the parent's attempt that has enqueued it"),
    Column("takeovers", Integer, nullable=False, server_default="0", doc="attempts after the death of an owner"),
    Column("result", JSONB(none_as_null=True)),
    Column("error", Text),
    Column("traceback", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("started_at", DateTime(timezone=True), doc="start of this attempt"),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("finished_at", DateTime(timezone=True)),
    CheckConstraint(f"state IN {RUN_STATES!r}", name="run_state_known"),
    CheckConstraint(
        "(finished_at IS NOT NULL) = (state IN ('succeeded', 'incomplete', 'dead', 'cancelled'))",
        name="run_finished_if_ended",
    ),
    CheckConstraint(
        "fence >= 1 AND attempt >= 0 AND batches_before >= 0 AND takeovers >= 0 AND steps >= 0",
        name="run_numbers_not_negative",
    ),
)
Index("run_unfinished_idx", run.c.updated_at, postgresql_where=text("finished_at IS NULL"))
Index("run_created_at_idx", run.c.created_at)
Index("run_parent_idx", run.c.parent, postgresql_where=text("parent IS NOT NULL"))
Index("run_ended_idx", run.c.finished_at, run.c.id, postgresql_where=text("finished_at IS NOT NULL"))


def _fits_key(column: str) -> str:
    """Return a condition: a walk by a key has one value for each part of it."""
    return (
        f"CASE WHEN kind NOT IN ('chunks', 'sweep') THEN true "
        f"WHEN pg_catalog.jsonb_typeof({column}) <> 'array' OR pg_catalog.jsonb_typeof(key) <> 'array' THEN false "
        f"ELSE pg_catalog.jsonb_array_length({column}) = pg_catalog.jsonb_array_length(key) END"
    )


step = Table(
    "step",
    metadata,
    Column("run_id", Text, ForeignKey(run.c.id, ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True, doc="given, or made from the loop's kind and order"),
    Column("position", Integer, nullable=False),
    Column("kind", Text, nullable=False, doc="chunks, stream, sweep, the kind of a source, step or sleep"),
    Column("statement", Text, nullable=False, doc="SQL without its values, to detect a change; of a step its function"),
    Column("key", JSONB, nullable=False, doc="columns, types and directions of the cursor"),
    # Fence and cursor stand in one row: see worker/ledger/queries/checkpoint.sql for the race that this closes.
    Column("fence", BigInteger, nullable=False),
    Column("cursor", JSONB(none_as_null=True), doc="key of the last row done"),
    Column("upper_bound", JSONB(none_as_null=True), doc="last key of the walk, taken when it began"),
    Column("rows", BigInteger, nullable=False, server_default="0"),
    Column("batches", BigInteger, nullable=False, server_default="0"),
    Column("total", BigInteger, doc="rows to do, by the planner's estimate"),
    Column("done", Boolean, nullable=False, server_default="false"),
    Column("pace", JSONB(none_as_null=True), doc="learned batch size, and the share that is done"),
    Column("code_version", Text, doc="version of the jobs' code that began the step"),
    Column("result", Text, doc="of a step: JSON, as text, because jsonb has no place for some of its values"),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint(
        "fence >= 1 AND position >= 1 AND rows >= 0 AND batches >= 0 AND total >= 0", name="step_numbers_not_negative"
    ),
    CheckConstraint("pg_catalog.jsonb_typeof(key) = 'array'", name="step_key_is_a_list"),
    CheckConstraint(f"cursor IS NULL OR {_fits_key('cursor')}", name="step_cursor_fits_key"),
    CheckConstraint(f"upper_bound IS NULL OR {_fits_key('upper_bound')}", name="step_upper_bound_fits_key"),
    # Each checkpoint leaves a dead version of this row: room on the page keeps the updates HOT.
    postgresql_with={
        "fillfactor": 20,
        "autovacuum_vacuum_scale_factor": 0,
        "autovacuum_vacuum_threshold": 1000,
    },
)

step_range = Table(
    "step_range",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("step", Text, primary_key=True),
    Column("number", Integer, primary_key=True, doc="from 1, in the order of the walk"),
    Column("lower", JSONB(none_as_null=True), doc="the key behind which the range begins"),
    Column("upper", JSONB, nullable=False, doc="the last key of the range"),
    Column("partition", Text, doc="name of the partition that has its keys; null in a table without partitions"),
    Column("condition", Text, doc="condition for the keys of that partition, in SQL"),
    Column("cursor", JSONB(none_as_null=True), doc="key of the last row done"),
    Column("fence", BigInteger, nullable=False, server_default="1", doc="grows with each claim and release"),
    Column("owner", Text, doc="the run that walks the range, or has walked it to its end"),
    Column("owner_fence", BigInteger, doc="fence of that run when it claimed the range"),
    Column("rows", BigInteger, nullable=False, server_default="0"),
    Column("batches", BigInteger, nullable=False, server_default="0"),
    Column("batches_before", BigInteger, nullable=False, server_default="0", doc="batches when it was claimed"),
    Column("done", Boolean, nullable=False, server_default="false"),
    Column("pace", JSONB(none_as_null=True), doc="learned batch size"),
    Column("error", Text, doc="error of the helper that failed for good in this range"),
    Column("started_at", DateTime(timezone=True), doc="time of its first claim"),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    ForeignKeyConstraint(["run_id", "step"], [step.c.run_id, step.c.name], ondelete="CASCADE"),
    CheckConstraint(
        "number >= 1 AND fence >= 1 AND rows >= 0 AND batches >= 0 AND batches_before >= 0",
        name="step_range_numbers_not_negative",
    ),
    postgresql_with={
        "fillfactor": 20,
        "autovacuum_vacuum_scale_factor": 0,
        "autovacuum_vacuum_threshold": 1000,
    },
)
Index("step_range_owner_idx", step_range.c.owner, postgresql_where=text("owner IS NOT NULL"))

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, ForeignKey(run.c.id, ondelete="CASCADE"), nullable=False),
    Column("step", Text, nullable=False),
    Column("key", JSONB, nullable=False, doc="of the row, in the form of a cursor"),
    Column("error", Text, nullable=False),
    Column("traceback", Text),
    Column("row", JSONB(none_as_null=True), doc="as it was read"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
Index("quarantine_run_id_idx", quarantine.c.run_id)

skipped = Table(
    "skipped",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("step", Text, nullable=False),
    Column("key", JSONB, nullable=False, doc="of a row that was locked by others, in the form of a cursor"),
    ForeignKeyConstraint(["run_id", "step"], [step.c.run_id, step.c.name], ondelete="CASCADE"),
)
Index("skipped_run_id_idx", skipped.c.run_id, skipped.c.step, skipped.c.id)

part = Table(
    "part",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("step", Text, nullable=False),
    Column("directory", Text, nullable=False, doc="directory or object prefix of the sink"),
    Column("name", Text, nullable=False, doc="of the file, which is complete"),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    ForeignKeyConstraint(["run_id", "step"], [step.c.run_id, step.c.name], ondelete="CASCADE"),
)
Index("part_run_id_idx", part.c.run_id, part.c.directory, part.c.id)

data_migration = Table(
    "data_migration",
    metadata,
    Column("name", Text, primary_key=True, doc="name of the job, and id of its run"),
    Column("run_id", Text, nullable=False, doc="the run that has done it; it may be pruned"),
    Column("result", JSONB(none_as_null=True)),
    Column("finished_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

sample = Table(
    "sample",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, ForeignKey(run.c.id, ondelete="CASCADE"), nullable=False),
    Column("step", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("attempt", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False, doc="rows of the step that were done then"),
    Column("batches", BigInteger, nullable=False),
    Column("seconds", JSONB, nullable=False, doc="seconds since the sample before, by their reason"),
)
Index("sample_run_id_idx", sample.c.run_id, sample.c.step, sample.c.id)

run_log = Table(
    "run_log",
    metadata,
    Column("run_id", Text, ForeignKey(run.c.id, ondelete="CASCADE"), primary_key=True),
    Column("lines", ARRAY(Text), nullable=False, doc="the last lines of its log, each a JSON object"),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

selection = Table(
    "selection",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("subset", Text, doc="SQL expression of an operator; it must not come from Redis"),
    Column("first", JSONB(none_as_null=True), doc="key that its walks begin at"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, doc="order in which rows are relayed"),
    Column("run_id", Text, nullable=False, doc="id of the run; not unique, as the queue decides whether it is known"),
    Column("job", Text, nullable=False),
    Column("queue", Text, doc="NULL for `worker.queue` of the worker that relays it"),
    Column("payload", Text, nullable=False, doc="arq's JSON payload, as it goes to the queue"),
    Column("due_at", DateTime(timezone=True), doc="NULL for at once"),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("options", JSONB(none_as_null=True), doc="lock of a unique run, replace, fair: see worker/queue/outbox.py"),
    Column("mark", UUID, nullable=False, server_default=text("pg_catalog.gen_random_uuid()"), doc="see relay.lua"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("problem", Text, doc="why it cannot be relayed; it waits until an operator clears this or deletes the row"),
    CheckConstraint("length(run_id) BETWEEN 1 AND 500", name="outbox_run_id_length"),
    CheckConstraint("length(job) BETWEEN 1 AND 500", name="outbox_job_length"),
    CheckConstraint("length(queue) BETWEEN 1 AND 500", name="outbox_queue_length"),
    CheckConstraint("priority BETWEEN 0 AND 9", name="outbox_priority_known"),
    CheckConstraint("octet_length(options::text) <= 100000", name="outbox_options_length"),
    # Each row is deleted soon: without frequent vacuuming the index would be full of dead entries.
    postgresql_with={"autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 1000},
)

operator_order = Table(
    "operator_order",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("entry_id", Text, nullable=False, unique=True, doc="of the entry in the stream worker:orders"),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("order_name", Text, nullable=False, doc="e.g. pause"),
    Column("ordered_by", Text, nullable=False, doc="e.g. cli:ada@host, web:deploy or redis-cli"),
    Column("targets", JSONB(none_as_null=True)),
    Column("details", JSONB(none_as_null=True)),
)

cron_firing = Table(
    "cron_firing",
    metadata,
    Column("job", Text, primary_key=True),
    Column("line", Text, primary_key=True, doc="cron expression and time zone"),
    Column("due_at", DateTime(timezone=True), nullable=False, doc="last due time that was fired or skipped"),
)
