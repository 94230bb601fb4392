"""The parts of responses: what the API shows of runs, queues, workers and all else."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from worker.web.fields import Json, Text, View

RunState = Literal[
    "deferred", "waiting", "running", "paused", "succeeded", "incomplete", "dead", "cancelled", "unknown"
]


class RunView(View):
    """A run. A value is null if it is not known (yet)."""

    id: Text
    job: Text
    state: RunState
    queue: Text | None = None
    attempt: int | None = Field(
        default=None,
        description="Attempts since the last one that committed a batch: `max_attempts` counts them.",
    )
    takeovers: int | None = None
    rows: int | None = Field(default=None, description="Rows that are done, in all steps.")
    batches: int | None = None
    total: int | None = Field(default=None, description="Rows to do; counted or, by the planner, estimated.")
    percent: float | None = Field(default=None, description="0 to 100, of the present step.")
    percent_is_estimate: bool = Field(default=False, description="Whether `percent` is a rough estimate.")
    percent_by: Text | None = Field(
        default=None,
        description="That which `percent` is of: `position` of the key, `rows` of `total`, which is estimated, `count` "
        "of `total`, which is counted, or `ranges`.",
    )
    rate: float | None = Field(default=None, description="Rows per second.")
    eta_seconds: float | None = Field(default=None, description="Seconds until the end of the present step, estimated.")
    batch_size: int | None = None
    batch_ms: float | None = None
    step: Text | None = None
    hands: int | None = Field(default=None, description="Runs that walk the present step together.")
    helps: Text | None = Field(default=None, description="The run whose walk this run helps with.")
    worker: Text | None = Field(default=None, description="Null while no worker has it.")
    throttled: Text | None = Field(default=None, description="Why the walk waits; null if it does not.")
    throttled_since: datetime | None = None
    throttled_until: datetime | None = None
    throttled_by: Text | None = Field(default=None, description="Name of the throttle that the walk waits for.")
    quarantined: int | None = Field(default=None, description="Rows in quarantine; a list counts to 1,000.")
    stalled_since: datetime | None = None
    error: Text | None = None
    attempts: int | None = Field(default=None, description="Attempts since it was last run again.")
    retry_error: Text | None = Field(default=None, description="Why its last attempt failed, if it waits for the next.")
    due_at: datetime | None = Field(default=None, description="Null if it is due when its pause is removed.")
    created_at: datetime | None = None
    began_at: datetime | None = Field(
        default=None, description="Its first attempt since it was last run again; null before that."
    )
    started_at: datetime | None = None
    updated_at: datetime | None = None
    finished_at: datetime | None = None
    seconds: float | None = Field(default=None, description="From `began_at` to `finished_at`.")
    in_ledger: bool = Field(description="Whether PostgreSQL has the run: it has a durable loop or step.")


class PauseView(View):
    """A pause that applies to a run."""

    name: Text = Field(description="The entry of `worker:paused`: the run, its job, its queue, or `*`.")
    at: datetime | None = Field(default=None, description="When it was ordered; null if the events do not have it.")
    by: Text | None = None


class RunDetail(RunView):
    """A run, with its arguments and its result."""

    arguments: Json = Field(default=None, description="By name, preceded by a list of positional ones if any.")
    result: Json = None
    traceback: Text | None = None
    parent: Text | None = Field(default=None, description="The run whose walk this run helps with.")
    retries: Text | None = Field(default=None, description="The run whose quarantined rows this run processes.")
    pace: float | None = Field(default=None, description="Rows per second that an operator has set for this run.")
    paused_by: list[Text] = Field(
        default=[], description="Entries of `worker:paused` that name this run, its job or queue."
    )
    pauses: list[PauseView] = Field(default=[], description="The same entries, each with its order.")


class StepView(View):
    """A step of a run: a loop, or a recorded function or sleep."""

    name: Text
    position: int
    kind: Text
    statement: Text
    key: Json
    cursor: Json
    upper_bound: Json
    rows: int
    batches: int
    total: int | None
    done: bool
    percent: float | None
    percent_is_estimate: bool
    percent_by: Text | None = Field(description="As of a run; null for a step that is done.")
    ranges: int
    code_version: Text | None
    result: Text | None = Field(description="Of a recorded step, as JSON text.")
    started_at: datetime | None
    updated_at: datetime | None


class LogLineView(View):
    """A line of a run's log."""

    time: datetime
    level: Text
    logger: Text
    message: Text
    run: Text = Field(description="The run, or the helper run of one of its walks, that has written the line.")
    worker: Text
    attempt: int | None
    step: Text | None = Field(description="The loop or step in which the line was written.")
    exception: Text | None = Field(description="The end of the traceback.")
    extra: Json = Field(description="Further fields of the line, by name.")


class BatchView(View):
    """How far a step was at a moment: the batches between two samples are summed up."""

    step: Text
    at: datetime
    attempt: int
    rows: int = Field(description="Rows of the step that were done then.")
    batches: int = Field(description="Batches of the step that were committed then.")
    rows_per_second: float | None = Field(description="Rate since the sample before; null for the first.")
    seconds: dict[str, float] = Field(description="Seconds since the sample before, by their reason.")


class RangeView(View):
    """A range of a walk that several hands share."""

    step: Text
    number: int
    lower: Json
    upper: Json
    cursor: Json
    rows: int
    batches: int
    done: bool
    owner: Text | None
    error: Text | None
    started_at: datetime | None
    updated_at: datetime


class HandView(View):
    """A run that helps with the walks of another run."""

    id: Text
    state: RunState
    worker: Text | None
    rows: int = Field(description="Rows of the ranges that it owns, or owned last.")


class HandsView(View):
    """The hands of a run, and the ranges of its walks."""

    hands: list[HandView]
    ranges: list[RangeView]


class WorkerView(View):
    """A worker, as it has published itself."""

    name: Text
    state: Text = Field(description="`running`, `draining`, `stopped`; `lost` if it is silent.")
    queue: Text
    jobs: list[Text] = Field(description="Ids of the runs that it runs.")
    max_jobs: int | None
    done: int | None = Field(description="Runs that it has ended.")
    done_by_queue: dict[str, int] = Field(default={}, description="Runs that it has ended, by queue.")
    memory_bytes: int | None = Field(default=None, description="Resident memory of its process.")
    pid: int | None
    host: Text | None
    code: Text | None = Field(description="Version of the jobs' code.")
    started_at: datetime | None
    seen_at: datetime | None


class QueueView(View):
    """A queue."""

    name: Text
    waiting: int = Field(description="Runs that are due, and that no worker has claimed.")
    deferred: int = Field(description="Runs that are due later.")
    running: int
    oldest_due_at: datetime | None = Field(description="Due time of the run that waits longest.")
    is_paused: bool


class DeadLetterView(View):
    """A run that has failed permanently."""

    id: Text
    job: Text = Field(description="Empty if the payload could not be read.")
    queue: Text
    attempts: int
    at: datetime
    error: Text
    in_ledger: bool


class DeadLettersView(View):
    """A page of the dead letters."""

    items: list[DeadLetterView]
    looked_at: int = Field(description="Letters, from the newest, that this page and those before it have looked at.")
    total: int = Field(description="All dead letters.")
    next_cursor: Text | None = Field(default=None, description="Cursor of the next page; null after the last one.")


class DeadLetterDetail(DeadLetterView):
    """A run that has failed permanently, with its arguments and its traceback."""

    arguments: Json
    traceback: Text


class QuarantinedRowView(View):
    """A row that could not be processed."""

    id: int
    run_id: Text
    job: Text
    step: Text
    key: Json
    row: Json = Field(description="The values of the row, as it was read.")
    error: Text
    traceback: Text | None
    created_at: datetime


class OutboxRowView(View):
    """A run that was enqueued in a transaction, and waits for a relay."""

    id: int
    run_id: Text
    job: Text
    queue: Text | None = Field(description="Null for the queue of the relay's worker.")
    priority: int
    due_at: datetime | None = Field(description="Null for at once.")
    created_at: datetime
    problem: Text | None = Field(description="Why no relay can enqueue it; null if it waits.")


class OutboxView(View):
    """The outbox."""

    waiting: int = Field(description="Rows that wait for a relay.")
    oldest_seconds: float = Field(description="Age of the oldest of them.")
    refused: int = Field(description="Rows that no relay can enqueue.")
    items: list[OutboxRowView]
    next_cursor: Text | None = Field(default=None, description="Cursor of the next page; null after the last one.")


class LimitView(View):
    """The limits of a job or a queue, and the pace of walks."""

    name: Text = Field(description="Name of a job, a queue or a run, or `*` for every walk.")
    concurrency: int | None = Field(description="Most runs at once, as an operator has set it.")
    rate_per_second: float | None = Field(description="Starts per second, as an operator has set it.")
    rows_per_second: float | None = Field(description="Pace of walks, as an operator has set it.")
    job_concurrency: int | None = Field(description="Most runs at once, as the job's decorator sets it.")
    job_rate: Text | None = Field(description="Rate of starts, as the job's decorator sets it.")
    by: Text | None = Field(description="Argument for each value of which the number of runs at once holds.")
    running: int | None = Field(description="Places that are taken; null with `by`.")
    held: int | None = Field(description="Runs that wait for a place or for the rate; null with `by`.")


class JobRunView(View):
    """A run of a job, for its history."""

    id: Text
    state: RunState
    attempt: int | None
    began_at: datetime
    finished_at: datetime | None
    seconds: float | None = Field(description="Time from its first attempt to its end; null if it has not ended.")
    rows: int | None = Field(description="Rows of its loops; null if the ledger does not have it.")
    error: Text | None


class EndedRunView(View):
    """A run that has ended."""

    id: Text
    job: Text
    state: RunState
    attempt: int | None = None
    began_at: datetime | None = Field(description="Its first attempt since it was run; null if that is not known.")
    finished_at: datetime
    seconds: float | None = Field(description="Time between the two.")
    rows: int | None = Field(default=None, description="Rows of its loops; null without a loop.")
    error: Text | None = None


class FindingView(View):
    """The result of a check of the doctor."""

    check: Text
    level: Literal["fine", "warning", "wrong"]
    message: Text
    advice: Text


class OverviewView(View):
    """All that runs now, in one read."""

    at: datetime
    queues: list[QueueView]
    workers: list[WorkerView]
    runs: list[RunView] = Field(description="The first hundred running and waiting runs.")
    dead_letters: int
    failed_last_day: int = Field(default=0, description="Dead letters of the last 24 hours.")
    quarantined: int | None = Field(default=None, description="Rows in quarantine, to 10,000; null if not known.")
    paused: list[Text]
    cancelled: list[Text]


class MinuteView(View):
    """A minute of a queue."""

    at: datetime
    enqueued: int = Field(description="Runs that were enqueued, estimated from the length of the queue.")
    ended: int = Field(description="Runs that ended.")
    waiting: int = Field(description="Due runs at the end of the minute.")


class QueueHistoryView(View):
    """The last hour of a queue."""

    name: Text
    minutes: list[MinuteView | None] = Field(description="Oldest first; null if this server has not looked.")


class HistoryView(View):
    """The last hour of the queues, as far as this server has looked."""

    since: datetime | None = Field(description="Time of the first sample; null before it.")
    queues: list[QueueHistoryView]


class EventView(View):
    """An event of the stream `worker:events`."""

    id: Text
    event: Text
    fields: dict[str, Text] = Field(description="The fields of the event, e.g. run, job, worker, at, error.")


class EventsView(View):
    """A page of the events."""

    items: list[EventView]
    left_out: int = Field(description="Short runs of the last 10,000 events that are left out.")
    next_cursor: Text | None = Field(default=None, description="Cursor of the next page; null after the last one.")


class OrderView(View):
    """An order of an operator."""

    id: Text
    at: datetime
    order: Text
    ordered_by: Text
    targets: Json
    details: Json


class HealthView(View):
    """The answer to a probe."""

    status: Literal["ok", "failing"]
    checks: dict[str, Text] = Field(description="For each check `ok`, or its problem.")
