"""The part of `SyncClient` for operators: the methods of `Operations`, blocking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from worker.job.definition import Job
from worker.queue.blocking import run_without_loop
from worker.queue.client import Client
from worker.queue.commands import OperatorLimits
from worker.queue.cron_lines import CronStatus
from worker.queue.dead_letters import DeadLetter
from worker.queue.overview import Overview, RunSummary
from worker.queue.run import Status
from worker.queue.run_details import RunDetails
from worker.queue.run_log import LogLine
from worker.queue.sync_run import SyncRun

if TYPE_CHECKING:
    from worker.ledger import RunRecord
    from worker.ledger.outbox import OutboxEntry
    from worker.ledger.records import QuarantinedRow


class SyncOperations:
    """The part of `SyncClient` for operators. Each method does what that of `Client` does, which describes it."""

    _client: Client

    # --- look

    def status(self) -> Overview:
        """Return a snapshot of the queue, the workers, the first running and waiting runs, and what is paused."""
        return run_without_loop(self._client.status())

    def runs(
        self, *, job: str | None = None, state: Status | None = None, search: str | None = None, limit: int = 100
    ) -> list[RunSummary]:
        """Return the runs in Redis: first runs in the queue by due time, then ended runs; see `Client.runs`."""
        return run_without_loop(self._client.runs(job=job, state=state, search=search, limit=limit))

    def recorded_runs(
        self,
        *,
        job: str | None = None,
        state: str | None = None,
        search: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[RunRecord]:
        """Return the runs in the ledger, the newest first; see `Client.recorded_runs`."""
        return run_without_loop(
            self._client.recorded_runs(job=job, state=state, search=search, before=before, limit=limit)
        )

    def find_run(self, run_id: str, *, queue: str | None = None) -> RunDetails | None:
        """Return everything that is known about a run; None if it is unknown; see `Client.find_run`."""
        return run_without_loop(self._client.find_run(run_id, queue=queue))

    def run_log(self, run_id: str) -> list[LogLine]:
        """Return the last lines of a run's log, oldest first; see `Client.run_log`."""
        return run_without_loop(self._client.run_log(run_id))

    def dead_letters(
        self,
        *,
        ids: Sequence[str] | None = None,
        job: str | None = None,
        before: datetime | None = None,
        limit: int | None = 100,
        ledger: bool = False,
    ) -> list[DeadLetter]:
        """Return runs that have failed permanently, the newest first; see `Client.dead_letters`."""
        return run_without_loop(self._client.dead_letters(ids=ids, job=job, before=before, limit=limit, ledger=ledger))

    def quarantined_rows(
        self, *, run_id: str | None = None, row_id: int | None = None, limit: int = 100
    ) -> list[QuarantinedRow]:
        """Return rows that could not be processed, the newest first; see `Client.quarantined_rows`."""
        return run_without_loop(self._client.quarantined_rows(run_id=run_id, row_id=row_id, limit=limit))

    def limits(self) -> OperatorLimits:
        """Return the limits that operators have set with `limit`, `limit_rate` and `pace`."""
        return run_without_loop(self._client.limits())

    def cron(self, jobs: Iterable[Job[..., Any]] | None = None) -> list[CronStatus]:
        """Return the cron lines of jobs, the next due one first; see `Client.cron`."""
        return run_without_loop(self._client.cron(jobs))

    # --- steer

    def pause(self, *targets: str, where: Mapping[str, Any] | None = None) -> None:
        """Pause runs, jobs, queues, or everything; see `Client.pause`."""
        run_without_loop(self._client.pause(*targets, where=where))

    def resume(self, *targets: str, where: Mapping[str, Any] | None = None) -> int:
        """Remove pauses that `pause` set, and orders of `cancel`, with the same `where`. Returns how many were set."""
        return run_without_loop(self._client.resume(*targets, where=where))

    def pace(self, *targets: str, rows_per_second: float | None) -> None:
        """Limit the pace of running and future walks; see `Client.pace`."""
        run_without_loop(self._client.pace(*targets, rows_per_second=rows_per_second))

    def limit(self, *targets: str, running: int | None) -> None:
        """Limit how many runs of jobs or queues run at the same time, over all workers; see `Client.limit`."""
        run_without_loop(self._client.limit(*targets, running=running))

    def limit_rate(self, *jobs: str, runs_per_second: float | None) -> None:
        """Limit how many runs of jobs begin in a second; see `Client.limit_rate`."""
        run_without_loop(self._client.limit_rate(*jobs, runs_per_second=runs_per_second))

    def cancel(self, *run_ids: str, queue: str | None = None, where: Mapping[str, Any] | None = None) -> list[str]:
        """Cancel runs. Returns the ids that are neither waiting nor running; see `Client.cancel`."""
        return run_without_loop(self._client.cancel(*run_ids, queue=queue, where=where))

    def drain(self, *workers: str) -> list[str]:
        """Drain workers, as SIGTERM does. Returns the names that no worker has; see `Client.drain`."""
        return run_without_loop(self._client.drain(*workers))

    # --- again

    def retry(self, *run_ids: str) -> None:
        """Request that workers run ended runs and dead letters again, each from its last checkpoint."""
        run_without_loop(self._client.retry(*run_ids))

    def retry_now(self, *run_ids: str, from_start: bool = False, accept_statement: bool = False) -> list[str]:
        """Put ended runs and dead letters back into their queues, without a worker; see `Client.retry_now`."""
        return run_without_loop(
            self._client.retry_now(*run_ids, from_start=from_start, accept_statement=accept_statement)
        )

    def retry_dead_letters(
        self, *, job: str | None = None, before: datetime | None = None, everything: bool = False
    ) -> list[str]:
        """Put dead runs back into their queues. Returns their ids; see `Client.retry_dead_letters`."""
        return run_without_loop(self._client.retry_dead_letters(job=job, before=before, everything=everything))

    def delete_dead_letters(
        self, *run_ids: str, job: str | None = None, before: datetime | None = None, everything: bool = False
    ) -> list[str]:
        """Delete dead runs, with their checkpoints and quarantined rows; see `Client.delete_dead_letters`."""
        return run_without_loop(
            self._client.delete_dead_letters(*run_ids, job=job, before=before, everything=everything)
        )

    def retry_quarantined(self, run_id: str, *, row_ids: Sequence[int] = ()) -> list[SyncRun[Any]]:
        """Enqueue runs that process only the quarantined rows of a run; see `Client.retry_quarantined`."""
        return [SyncRun(run) for run in run_without_loop(self._client.retry_quarantined(run_id, row_ids=row_ids))]

    def discard_quarantined(self, *row_ids: int, run_id: str | None = None) -> int:
        """Delete rows from the quarantine. Returns their number; see `Client.discard_quarantined`."""
        return run_without_loop(self._client.discard_quarantined(*row_ids, run_id=run_id))

    def outbox_rows(self, *, refused: bool = False, search: str | None = None, limit: int = 100) -> list[OutboxEntry]:
        """Return the rows of the outbox, the newest first; see `Client.outbox_rows`."""
        return run_without_loop(self._client.outbox_rows(refused=refused, search=search, limit=limit))

    def retry_outbox(self, *row_ids: int) -> list[int]:
        """Let relays try rows again that could not be relayed. Returns their ids; see `Client.retry_outbox`."""
        return run_without_loop(self._client.retry_outbox(*row_ids))

    def delete_outbox(self, *row_ids: int) -> list[int]:
        """Delete rows that could not be relayed. Returns their ids; see `Client.delete_outbox`."""
        return run_without_loop(self._client.delete_outbox(*row_ids))
