"""The bodies and queries of requests."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from worker.db.tables import RUN_STATES
from worker.web.fields import Body, Moment, Name, PageQuery, Query

_LONGEST_DELAY = timedelta(days=36_500).total_seconds()
_MOST_TARGETS = 1_000
_LONGEST_SEARCH = 200

Names = Annotated[list[Name], Field(min_length=1, max_length=_MOST_TARGETS)]
RowIds = Annotated[list[Annotated[int, Field(ge=1, le=2**63 - 1)]], Field(min_length=1, max_length=_MOST_TARGETS)]
LedgerState = Literal["waiting", "running", "paused", "succeeded", "incomplete", "dead", "cancelled"]
assert set(RUN_STATES) == set(LedgerState.__args__)  # type: ignore[attr-defined]  # noqa: S101


class RunsQuery(PageQuery):
    """The runs to list."""

    job: Name | None = Field(default=None, description="Only runs of this job.")
    state: LedgerState | None = Field(default=None, description="Only runs in this state.")
    search: Name | None = Field(
        None, max_length=_LONGEST_SEARCH, description="Only runs with this text in their id, job, arguments or error."
    )


class DeadLettersQuery(PageQuery):
    """The dead letters to list."""

    job: Name | None = Field(default=None, description="Only letters of this job.")
    search: Name | None = Field(
        None,
        max_length=_LONGEST_SEARCH,
        description="Only letters with this text in their id, job, arguments or error.",
    )


class QuarantineQuery(PageQuery):
    """The rows to list."""

    run: Name | None = Field(default=None, description="Only rows of this run.")
    job: Name | None = Field(default=None, description="Only rows of this job.")
    search: Name | None = Field(
        None,
        max_length=_LONGEST_SEARCH,
        description="Only rows with this text in their run, job, key, values or error.",
    )


class OutboxQuery(PageQuery):
    """The rows of the outbox to list."""

    refused: Literal["true", "false"] = Field(default="false", description="Whether to list refused rows only.")
    search: Name | None = Field(
        None, max_length=_LONGEST_SEARCH, description="Only rows with this text in their run, job, queue or problem."
    )


class EventListQuery(PageQuery):
    """The events to list."""

    event: Name | None = Field(
        default=None, description="Only events of this kind, or of `failures`, `ends`, `orders` or `workers`."
    )
    job: Name | None = Field(default=None, description="Only events of this job.")
    search: Name | None = Field(
        None, max_length=_LONGEST_SEARCH, description="Only events with this text in one of their fields."
    )
    brief: Literal["true", "false"] = Field(
        default="true", description="Whether to list runs without a loop that succeeded within a second."
    )


class EventsQuery(Query):
    """The selection of a stream of events."""

    progress: Literal["true", "false"] = Field(
        default="false", description="Whether to add the progress of running runs."
    )


class EnqueueBody(Body):
    """A run to enqueue."""

    job: Name = Field(description="Name of the job.")
    arguments: dict[str, Any] = Field(default={}, description="Arguments by name, as JSON values.")
    id: Name | None = Field(default=None, description="Id of the run. Enqueueing an id twice makes one run.")
    delay_seconds: float | None = Field(
        default=None, ge=0, le=_LONGEST_DELAY, description="Seconds until the run is due."
    )
    at: Moment | None = Field(default=None, description="Time at which the run is due, with a time zone.")
    queue: Name | None = Field(default=None, description="Queue; by default that of the settings.")
    priority: int | None = Field(default=None, ge=0, le=9, description="0 to 9; higher runs first.")

    @model_validator(mode="after")
    def _check_due_time(self) -> EnqueueBody:
        if self.delay_seconds is not None and self.at is not None:
            raise ValueError("give delay_seconds or at, not both")
        return self


class RunNowBody(Body):
    """The arguments of an extra run of a cron job."""

    arguments: dict[str, Any] = Field(default={}, description="Arguments by name, instead of the defaults.")


class PlanBody(Body):
    """The arguments of a job that is planned."""

    arguments: dict[str, Any] = Field(default={}, description="Arguments by name, as JSON values.")


class TryBody(PlanBody):
    """The part of a job to try."""

    batches: int = Field(default=3, ge=1, le=20, description="Batches to run, over all loops.")
    rows: int = Field(default=50, ge=1, le=1_000, description="Rows in a batch.")


class PauseBody(Body):
    """The jobs, runs or queues to pause or resume."""

    targets: Names = Field(description="Run ids, names of jobs or queues, or `*` for all.")
    where: dict[Name, str | int | float | bool | None] | None = Field(
        None, min_length=1, description="Of the jobs that `targets` names, only runs with these arguments."
    )


class PaceBody(Body):
    """A pace of walks."""

    targets: Names = Field(description="Run ids, names of jobs, or `*` for every walk.")
    rows_per_second: float | None = Field(gt=0, le=1e12, description="The limit; null removes it.")


class RunsBody(Body):
    """Runs to which an order applies."""

    runs: Names = Field(description="Ids of the runs.")


class RetryBody(RunsBody):
    """Runs to run again."""

    from_start: bool = Field(default=False, description="Delete the checkpoints, and process every row again.")
    accept_statement: bool = Field(default=False, description="Continue walks although their statement has changed.")

    @model_validator(mode="after")
    def _check_one_form(self) -> RetryBody:
        if self.from_start and self.accept_statement:
            raise ValueError("give from_start or accept_statement, not both")
        return self


class DrainBody(Body):
    """Workers to drain."""

    workers: Names = Field(description="Names of the workers.")


class LimitBody(Body):
    """The limits of a job or a queue. A field that is null removes its limit; one that is missing leaves it."""

    name: Name = Field(description="Name of a job, or of a queue.")
    concurrency: int | None = Field(default=None, ge=1, le=1_000_000, description="Most runs at once.")
    rate_per_second: float | None = Field(default=None, gt=0, le=1e6, description="Starts per second, of a job.")

    @model_validator(mode="after")
    def _check_some(self) -> LimitBody:
        if not self.model_fields_set & {"concurrency", "rate_per_second"}:
            raise ValueError("give concurrency or rate_per_second, or both")
        return self


class DeadLettersBody(Body):
    """Dead letters to which an order applies: those with these ids, or those of a job, or all."""

    runs: Names | None = Field(default=None, description="Ids of the runs.")
    job: Name | None = Field(default=None, description="Every letter of this job.")
    all: Literal[True] | None = Field(default=None, description="Every letter.")
    before: Moment | None = Field(default=None, description="Only letters of failures before this time.")

    @model_validator(mode="after")
    def _check_one_choice(self) -> DeadLettersBody:
        if sum(one is not None for one in (self.runs, self.job, self.all)) != 1:
            raise ValueError("give one of runs, job and all")
        return self


class RetryRowsBody(Body):
    """Quarantined rows to process again: those with these ids, or all of some runs."""

    rows: RowIds | None = Field(default=None, description="Ids of the rows.")
    runs: Names | None = Field(default=None, description="Ids of the runs.")

    @model_validator(mode="after")
    def _check_one_choice(self) -> RetryRowsBody:
        if (self.rows is None) == (self.runs is None):
            raise ValueError("give rows or runs, not both")
        return self


class DiscardBody(Body):
    """Quarantined rows to delete: those with these ids, or all of a run."""

    rows: RowIds | None = Field(default=None, description="Ids of the rows.")
    run: Name | None = Field(default=None, description="Id of a run.")

    @model_validator(mode="after")
    def _check_one_choice(self) -> DiscardBody:
        if (self.rows is None) == (self.run is None):
            raise ValueError("give rows or run, not both")
        return self


class OutboxBody(Body):
    """Refused rows of the outbox to which an order applies: those with these ids, or all."""

    rows: RowIds | None = Field(default=None, description="Ids of the rows.")
    all: Literal[True] | None = Field(default=None, description="Every refused row.")

    @model_validator(mode="after")
    def _check_one_choice(self) -> OutboxBody:
        if (self.rows is None) == (self.all is None):
            raise ValueError("give rows or all, not both")
        return self
