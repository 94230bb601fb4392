"""The parts of responses that show jobs and their cron lines."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from worker.web.fields import Json, Text, View
from worker.web.views import JobRunView


class CronView(View):
    """A cron line of a job."""

    job: Text
    line: Text
    next_at: datetime
    seen_at: datetime | None = Field(
        description="When a worker has first seen the line, if no due time of it has passed since; null otherwise."
    )
    last_at: datetime | None = Field(description="The last due time that a worker enqueued or skipped.")
    last_run: Text | None
    last_state: Text | None = Field(description="State of its run; `deleted` if nothing is known of the run any more.")
    last_began_at: datetime | None = Field(description="The begin of its run; null if it has not begun, or is deleted.")
    last_finished_at: datetime | None
    late_seconds: float | None = Field(
        description="From the due time to the begin of its run, or until now; null if that is not known."
    )
    last_rows: int | None = Field(description="Rows of its run; null without a loop.")
    newest_run: JobRunView | None = Field(
        default=None, description="The run of the job that began last, of any origin; null if the events have none."
    )
    newest_by_hand: bool = Field(default=False, description="Whether an operator has enqueued that run.")


class JobView(View):
    """A job that this server can import."""

    name: Text
    description: Text
    cron: list[Text]
    run_in: Text
    priority: int
    concurrency: int | None
    rate: Text | None
    timeout_seconds: float = Field(
        description="Most seconds of an attempt until its first durable loop or step; of this server's settings unless "
        "the job sets it.",
    )
    is_unique: bool
    is_data_migration: bool
    has_loops: bool = Field(description="Whether it walks, so that it can be planned and tried.")
    arguments: Json = Field(description="JSON Schema of the arguments, an object by name.")
