"""The reads and orders of operators through a client; `SyncOperations` has the same methods for `SyncClient`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from worker.awaiting import track_awaits
from worker.errors import SettingsError
from worker.job.definition import Job
from worker.job.registry import discover
from worker.queue import commands
from worker.queue.audit import record_order
from worker.queue.conditions import make_entries
from worker.queue.cron_lines import CronStatus, list_cron_lines
from worker.queue.dead_letters import DeadLetter, DeadLetterFilter, dead_letters, list_dead_letters
from worker.queue.overview import Overview, RunSummary, list_runs, overview
from worker.queue.run import Run, Status
from worker.queue.run_details import RunDetails, find_run
from worker.queue.run_log import LogLine, read_log
from worker.queue.run_reader import RunReader

if TYPE_CHECKING:
    from worker.db.engine import Database
    from worker.ledger import Ledger, RunRecord
    from worker.ledger.outbox import OutboxEntry
    from worker.ledger.records import QuarantinedRow
    from worker.queue.ledger_access import LedgerAccess
    from worker.settings import Settings

T = TypeVar("T")


@track_awaits("client")
class Operations:
    """The part of `Client` for operators.

    Methods that need the ledger raise `SettingsError` if `database.url` is not set and the client has no `database`,
    and `ServerUnavailable` if PostgreSQL does not answer.
    """

    _settings: Settings
    _reader: RunReader
    _database: Database | None
    _access: LedgerAccess | None = None

    # --- look

    async def status(self) -> Overview:
        """Return a snapshot of the queue, the workers, the first running and waiting runs, and what is paused."""
        return await self._reader.command(overview(self._reader.redis, self._settings))

    async def runs(
        self, *, job: str | None = None, state: Status | None = None, search: str | None = None, limit: int = 100
    ) -> list[RunSummary]:
        """Return the runs in Redis: first runs in the queue by due time, then ended runs.

        Ended runs are known for `worker.result_ttl_seconds`. They are found by a scan of the keys of Redis, which takes
        about a second for a million keys.

        Args:
            job: only runs of this job.
            state: only runs in this state.
            search: only runs with this text in their id, job, error or worker; case does not count.
            limit: number of runs, at most.
        """
        options: dict[str, Any] = {"job": job, "state": state, "search": search, "limit": limit}
        return await self._reader.command(list_runs(self._reader.redis, self._settings, **options))

    async def recorded_runs(
        self,
        *,
        job: str | None = None,
        state: str | None = None,
        search: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[RunRecord]:
        """Return the runs in the ledger, the newest first. Jobs without a durable loop are not there.

        Args:
            job: only runs of this job.
            state: only runs in this state.
            search: only runs with this text in their id, job, arguments or error; case does not count.
            before: only runs that began before this one: `created_at` and `id` of the last run of the page before.
            limit: number of runs, at most.
        """
        options: dict[str, Any] = {"job": job, "state": state, "search": search, "before": before, "limit": limit}
        return await self._with_ledger(lambda ledger: ledger.list_runs(**options))

    async def find_run(self, run_id: str, *, queue: str | None = None) -> RunDetails | None:
        """Return everything that is known about a run; None if neither Redis nor the ledger has it.

        The ledger is read, too, if the client has a database.

        Args:
            run_id: id of the run.
            queue: its queue; `worker.queue` by default.
        """
        place = queue or self._settings.worker.queue
        return await self._with_ledger_if_any(lambda ledger: find_run(self._reader, run_id, queue=place, ledger=ledger))

    async def run_log(self, run_id: str) -> list[LogLine]:
        """Return the last lines of a run's log, oldest first; none if there are none, or the run is unknown.

        The ledger is read, too, if the client has a database.

        Args:
            run_id: id of the run.
        """
        return await self._with_ledger_if_any(lambda ledger: read_log(self._reader, run_id, ledger=ledger))

    async def dead_letters(
        self,
        *,
        ids: Sequence[str] | None = None,
        job: str | None = None,
        before: datetime | None = None,
        limit: int | None = 100,
        ledger: bool = False,
    ) -> list[DeadLetter]:
        """Return runs that have failed permanently, the newest first.

        Args:
            ids: only these runs.
            job: only runs of this job.
            before: only runs that failed before this aware time.
            limit: number of runs, at most; None for all.
            ledger: whether to read the ledger as well, which keeps runs longer than Redis does.
        """
        chosen = DeadLetterFilter(None if ids is None else tuple(ids), job, before)
        redis = self._reader.redis
        if not ledger:
            return await self._reader.command(list_dead_letters(redis, chosen, limit=limit))
        return await self._with_ledger(lambda opened: dead_letters(redis, opened, chosen, limit))

    async def quarantined_rows(
        self, *, run_id: str | None = None, row_id: int | None = None, limit: int = 100
    ) -> list[QuarantinedRow]:
        """Return rows that could not be processed, the newest first. Needs the ledger.

        Args:
            run_id: only rows of this run.
            row_id: only the row with this id.
            limit: number of rows, at most.
        """
        return await self._with_ledger(
            lambda ledger: ledger.quarantine.list_rows(
                run_id=run_id, row_ids=None if row_id is None else [row_id], limit=limit
            )
        )

    async def limits(self) -> commands.OperatorLimits:
        """Return the limits that operators have set with `limit`, `limit_rate` and `pace`."""
        return await commands.read_limits(self._reader)

    async def cron(self, jobs: Iterable[Job[..., Any]] | None = None) -> list[CronStatus]:
        """Return the cron lines of jobs, the next due one first.

        The last due times are those of the ledger if the client has a database, and of Redis otherwise.

        Args:
            jobs: the jobs; by default those of the packages in `worker.packages`.
        """
        known = list(discover(self._settings.worker.packages).values() if jobs is None else jobs)
        queue = self._settings.worker.queue
        return await self._with_ledger_if_any(
            lambda ledger: list_cron_lines(self._reader, known, queue=queue, ledger=ledger)
        )

    # --- steer

    async def pause(self, *targets: str, where: Mapping[str, Any] | None = None) -> None:
        """Pause runs, jobs, queues, or everything.

        Args:
            targets: run ids, names of jobs or queues, or `*` for everything. A running walk stops at its next batch
                boundary; a waiting run does not begin.
            where: values of arguments by name: of the jobs that `targets` names, only runs with these values.
        """
        await commands.pause(self._reader, make_entries(targets, where))

    async def resume(self, *targets: str, where: Mapping[str, Any] | None = None) -> int:
        """Remove pauses that `pause` set, and orders of `cancel`, with the same `where`. Returns how many were set."""
        entries = make_entries(targets, where)
        removed = await commands.resume(self._reader, entries)
        return removed + (await commands.stop_cancelling(self._reader, entries) if where else 0)

    async def pace(self, *targets: str, rows_per_second: float | None) -> None:
        """Limit the pace of running and future walks.

        Args:
            targets: run ids, names of jobs, or `*` for every walk.
            rows_per_second: the limit; None removes it, and the settings and the job apply again.
        """
        await commands.pace(self._reader, targets, rows_per_second)

    async def limit(self, *targets: str, running: int | None) -> None:
        """Limit how many runs of jobs or queues run at the same time, over all workers.

        Args:
            targets: names of jobs or queues.
            running: the limit, instead of the job's `concurrency=`; None removes it, and the job's applies again.
        """
        await commands.limit(self._reader, targets, running)

    async def limit_rate(self, *jobs: str, runs_per_second: float | None) -> None:
        """Limit how many runs of jobs begin in a second.

        Args:
            jobs: names of jobs.
            runs_per_second: the limit, instead of the job's `rate=`; None removes it, and the job's applies again.
        """
        await commands.limit_rate(self._reader, jobs, runs_per_second)

    async def cancel(
        self, *run_ids: str, queue: str | None = None, where: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Cancel runs: a running walk at its next batch boundary, a waiting run at once.

        Args:
            run_ids: ids of the runs; with `where`, names of jobs.
            queue: their queue; `worker.queue` by default.
            where: values of arguments by name: all runs of the jobs with these values are cancelled, also those that
                are still to come, until `resume` with the same `where`.

        Returns:
            The ids that are neither waiting nor running. Nothing was changed for them.
        """
        if where:
            await commands.cancel_matching(self._reader, make_entries(run_ids, where))
            return []
        return await commands.cancel(self._reader, run_ids, queue=queue or self._settings.worker.queue)

    async def drain(self, *workers: str) -> list[str]:
        """Drain workers, as SIGTERM does: jobs stop at their next boundary and return to the queue.

        Args:
            workers: names of the workers, as listed in `worker:workers`.

        Returns:
            The names that no worker has. Nothing was changed for them.
        """
        return await commands.drain(self._reader, workers)

    # --- again

    async def retry(self, *run_ids: str) -> None:
        """Request that workers run ended runs and dead letters again, each from its last checkpoint.

        A worker obeys within a second. It logs a warning for an id that is neither an ended run nor a dead letter.

        Args:
            run_ids: ids of the runs.
        """
        await commands.request_retry(self._reader, run_ids)

    async def retry_now(self, *run_ids: str, from_start: bool = False, accept_statement: bool = False) -> list[str]:
        """Put ended runs and dead letters back into their queues, without a worker. Needs the ledger.

        Args:
            run_ids: ids of the runs.
            from_start: whether to delete their checkpoints and process every row again.
            accept_statement: whether walks continue although a deploy has changed their statement.

        Returns:
            The ids of those that were enqueued again. The others are neither ended nor dead.
        """
        redis, options = self._reader.redis, {"from_start": from_start, "accept_statement": accept_statement}
        return await self._with_ledger(lambda ledger: commands.retry_runs(redis, ledger, run_ids, **options))

    async def retry_dead_letters(
        self, *, job: str | None = None, before: datetime | None = None, everything: bool = False
    ) -> list[str]:
        """Put dead runs back into their queues. Needs the ledger.

        Args:
            job: only runs of this job.
            before: only runs that failed before this aware time.
            everything: all dead runs, instead of `job` and `before`.

        Returns:
            The ids of the runs.
        """
        chosen = commands.choose_dead_letters("retry_dead_letters", (), job, before, everything)
        redis = self._reader.redis
        return await self._with_ledger(lambda ledger: commands.retry_dead_letters(redis, ledger, chosen))

    async def delete_dead_letters(
        self, *run_ids: str, job: str | None = None, before: datetime | None = None, everything: bool = False
    ) -> list[str]:
        """Delete dead runs, with their checkpoints and quarantined rows. Needs the ledger.

        Args:
            run_ids: ids of the runs.
            job: only runs of this job, instead of ids.
            before: only runs that failed before this aware time, instead of ids.
            everything: all dead runs, instead of the other arguments.

        Returns:
            The ids of the runs that were deleted.
        """
        chosen = commands.choose_dead_letters("delete_dead_letters", run_ids, job, before, everything)
        redis = self._reader.redis
        return await self._with_ledger(lambda ledger: commands.delete_dead_letters(redis, ledger, chosen))

    async def retry_quarantined(self, run_id: str, *, row_ids: Sequence[int] = ()) -> list[Run[Any]]:
        """Enqueue a run for each step of a run that has quarantined rows. It processes only these. Needs the ledger.

        Each row leaves the quarantine in the transaction that processes it.

        Args:
            run_id: id of the run.
            row_ids: only these rows; by default all. A worker of an older version ignores the choice.
        """
        reader = self._reader
        queue, ids = await self._with_ledger(lambda one: commands.retry_quarantined(reader, one, run_id, row_ids))
        return [Run(self._reader, new_id, queue, None, is_new=True) for new_id in ids]

    async def discard_quarantined(self, *row_ids: int, run_id: str | None = None) -> int:
        """Delete rows from the quarantine, for example after they were corrected by hand. Needs the ledger.

        Args:
            row_ids: ids of the rows.
            run_id: all rows of this run, instead of ids.

        Returns:
            The number of rows.
        """
        reader, ids = self._reader, list(row_ids)
        return await self._with_ledger(lambda one: commands.discard_quarantined(reader, one, ids, run_id))

    # --- the outbox

    async def outbox_rows(
        self, *, refused: bool = False, search: str | None = None, limit: int = 100
    ) -> list[OutboxEntry]:
        """Return the rows of the outbox, the newest first. Needs the ledger.

        Args:
            refused: whether to return only rows that cannot be relayed.
            search: only rows with this text in the id of the run, job, queue or problem; case does not count.
            limit: number of rows, at most.
        """
        options: dict[str, Any] = {"refused": refused, "search": search, "limit": limit}
        return await self._with_ledger(lambda ledger: ledger.outbox.list_rows(**options))

    async def retry_outbox(self, *row_ids: int) -> list[int]:
        """Let relays try refused rows of the outbox again; all of them if no id is given. Return their ids."""
        done = await self._with_ledger(lambda ledger: ledger.outbox.clear_problems(row_ids or None))
        await self._reader.command(record_order(self._reader.redis, "outbox_retry", done))
        return done

    async def delete_outbox(self, *row_ids: int) -> list[int]:
        """Delete refused rows of the outbox; all of them if no id is given. Return their ids."""
        done = await self._with_ledger(lambda ledger: ledger.outbox.delete_refused(row_ids or None))
        await self._reader.command(record_order(self._reader.redis, "outbox_delete", done))
        return done

    # --- the ledger

    async def _with_ledger(self, operation: Callable[[Ledger], Awaitable[T]]) -> T:
        check_database(self._settings, self._database)
        if self._access is None:
            self._access = import_module("worker.queue.ledger_access").LedgerAccess(self._settings, self._database)
        return await self._reader.command(self._access.use(operation))

    async def _with_ledger_if_any(self, operation: Callable[[Ledger | None], Awaitable[T]]) -> T:
        if self._database is None and not has_database(self._settings):
            return await operation(None)
        return await self._with_ledger(operation)


def has_database(settings: Settings) -> bool:
    """Return whether the settings name a database: the default of `database.url` does not count."""
    return "url" in settings.database.model_fields_set


def check_database(settings: Settings, database: Database | None) -> None:
    """Raise `SettingsError` if there is no database to open."""
    if database is None and not has_database(settings):
        raise SettingsError("this command needs the ledger, and database.url is not set: set DATABASE_URL")
