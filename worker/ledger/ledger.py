"""The ledger as a whole: looking runs up, putting them back, ending them by order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.db.engine import Database
from worker.ledger.owned_run import OwnedRun
from worker.ledger.queries import query
from worker.ledger.records import DeadRun, EndedRun, QuarantinedRow, RunRecord, RunSpec, StepRecord


@dataclass(frozen=True)
class KnownRun:
    """What `find` returns."""

    job: str
    arguments: str
    state: str
    error: str | None
    finished: bool
    payload: str
    queue: str


class Ledger:
    """Runs in the schema `worker`.

    Args:
        database: where the schema is.
        owner: name of this worker.
    """

    def __init__(self, database: Database, owner: str = "") -> None:
        self._database = database
        self._owner = owner

    async def begin(self, spec: RunSpec) -> OwnedRun:
        """Take a run, new or known, and return it with its steps.

        Raises:
            AlreadyFinished: the ledger has its end.
        """
        run = OwnedRun(self._database, spec, self._owner)
        await run.begin()
        return run

    async def find(self, run_id: str) -> KnownRun | None:
        """Return what the ledger knows of a run, or None: jobs without a durable loop are not in it."""
        async with self._database.connection() as connection:
            row = (await connection.execute(query("find_run"), {"id": run_id})).one_or_none()
        if row is None:
            return None
        return KnownRun(row.job, row.arguments, row.state, row.error, row.finished, row.payload, row.queue)

    async def find_all(
        self, *, run_id: str | None = None, job: str | None = None, state: str | None = None, limit: int = 50
    ) -> list[RunRecord]:
        """Return runs with the sums of their steps, the newest first; with `run_id`, that one with its steps."""
        async with self._database.connection() as connection:
            values = {"id": run_id, "job": job, "state": state, "limit": limit}
            runs = [RunRecord(**row._mapping) for row in await connection.execute(query("list_runs"), values)]
            if run_id is not None:
                for run in runs:
                    rows = await connection.execute(query("list_steps"), {"run_id": run_id})
                    run.steps.extend(StepRecord(**row._mapping) for row in rows)
        return runs

    async def orphans(self, *, idle_seconds: float, limit: int = 1000) -> list[RunSpec]:
        """Return unfinished runs that nobody has touched for `idle_seconds`."""
        async with self._database.connection() as connection:
            rows = await connection.execute(query("find_orphans"), {"idle_seconds": idle_seconds, "limit": limit})
            return [RunSpec(row.id, row.job, row.queue, row.payload) for row in rows]

    async def retry(
        self, run_id: str, *, from_start: bool, revise: Callable[[str], str] = lambda payload: payload
    ) -> RunSpec | None:
        """Make an ended run ready to go on; the caller puts it into the queue.

        Args:
            run_id: id of the run.
            from_start: forget its checkpoints.
            revise: what becomes of its payload.

        Returns:
            The run; None where it has not ended.
        """
        async with self._database.connection() as connection:
            if from_start:
                await connection.execute(query("forget_steps"), {"id": run_id})
            row = (await connection.execute(query("retry_run"), {"id": run_id})).one_or_none()
            if row is None:
                await connection.rollback()
                return None
            payload = revise(row.payload)
            if payload != row.payload:
                await connection.execute(query("revise_payload"), {"id": run_id, "payload": payload})
            return RunSpec(run_id, row.job, row.queue, payload)

    async def dead(
        self,
        *,
        ids: list[str] | None = None,
        job: str | None = None,
        before: datetime | None = None,
        limit: int | None = None,
    ) -> list[DeadRun]:
        """Return runs that have failed for good, the newest first."""
        async with self._database.connection() as connection:
            values = {"ids": ids, "job": job, "before": before, "limit": limit}
            rows = await connection.execute(query("list_dead"), values)
            return [DeadRun(**row._mapping) for row in rows]

    async def delete_dead(self, ids: list[str]) -> int:
        """Forget runs that have failed for good. Returns their number."""
        async with self._database.connection() as connection:
            return (await connection.execute(query("delete_dead"), {"ids": ids})).rowcount

    async def forget_ended(self, *, keep_seconds: float, after: EndedRun | None, limit: int) -> list[EndedRun]:
        """Forget runs that ended long ago, with their steps; not those that have rows in quarantine.

        Args:
            keep_seconds: how long ago.
            after: the last one that was forgotten before; None to begin.
            limit: how many, at most.

        Returns:
            Them, in their order; fewer than `limit` where there are no more.
        """
        at, id_ = (after.finished_at, after.id) if after else (datetime.min.replace(tzinfo=UTC), "")
        values = {"keep_seconds": keep_seconds, "after_at": at, "after_id": id_, "limit": limit}
        async with self._database.connection() as connection:
            rows = await connection.execute(query("forget_ended"), values)
            return sorted(EndedRun(row.finished_at, row.id, row.state) for row in rows)

    async def may_quarantine(self, run: OwnedRun, step: str, limit: float) -> bool:
        """Tell whether one row more may be set aside: below a number, or a share of the rows that were seen."""
        async with self._database.connection() as connection:
            values = {"run_id": run.spec.id, "step": step}
            aside = int(await connection.scalar(query("count_quarantined"), values) or 0)
        if limit >= 1:
            return aside < limit
        return aside + 1 <= limit * (run.steps[step].rows + aside + 1)

    async def quarantined(
        self, *, run_id: str | None = None, id_: int | None = None, limit: int = 50
    ) -> list[QuarantinedRow]:
        """Return rows that were set aside, the newest first."""
        async with self._database.connection() as connection:
            values = {"run_id": run_id, "id": id_, "limit": limit}
            rows = await connection.execute(query("list_quarantined"), values)
            return [QuarantinedRow(**row._mapping) for row in rows]

    async def discard(self, *, run_id: str | None = None, ids: list[int] | None = None) -> int:
        """Forget rows that were set aside. Returns their number."""
        if run_id is None and ids is None:
            return 0
        async with self._database.connection() as connection:
            result = await connection.execute(query("discard_quarantined"), {"run_id": run_id, "ids": ids})
            return result.rowcount

    async def last_firings(self) -> dict[tuple[str, str], datetime]:
        """Return the last due time of each cron line that was fired or skipped, by job and line."""
        async with self._database.connection() as connection:
            rows = await connection.execute(query("list_cron_firings"))
            return {(row.job, row.line): row.due_at for row in rows}

    async def begin_line(self, job: str, line: str, moment: datetime) -> None:
        """Write down that a cron line begins at a moment: what was due before is not missed. A known one stays."""
        async with self._database.connection() as connection:
            await connection.execute(query("begin_cron"), {"job": job, "line": line, "moment": moment})

    @asynccontextmanager
    async def firing(self, job: str, line: str, due_at: datetime) -> AsyncIterator[bool]:
        """Take a due time of a cron line, written down when the block ends; rolled back when it raises.

        Yields:
            Whether it is ours: False where it was fired or skipped before.
        """
        async with self._database.connection() as connection:
            values = {"job": job, "line": line, "due_at": due_at}
            yield (await connection.execute(query("fire_cron"), values)).one_or_none() is not None
