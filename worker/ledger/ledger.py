"""The ledger as a whole: claim, look up, retry and delete runs, and record the firings of cron lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from worker.db.engine import Database
from worker.ledger.outbox import Outbox
from worker.ledger.owned_run import OwnedRun, claim_run
from worker.ledger.quarantine import Quarantine
from worker.ledger.queries import query
from worker.ledger.records import (
    DeadRun,
    DeletedRun,
    EndedRun,
    KnownRun,
    MissingMigration,
    OrderRecord,
    RangeState,
    RunRecord,
    RunSpec,
    Sample,
    StepRecord,
)
from worker.ledger.text import storable, storable_json


class Ledger:
    """The runs in the schema `worker`.

    Args:
        database: The database that has the schema.
        owner: Name of this worker.
        code_version: Version of the jobs' code, recorded with each step.

    Attributes:
        quarantine: The rows that could not be processed.
        outbox: The runs that wait for a relay.
    """

    def __init__(self, database: Database, owner: str = "", code_version: str | None = None) -> None:
        self._database = database
        self._owner = owner
        self._code_version = code_version
        self.quarantine = Quarantine(database)
        self.outbox = Outbox(database)

    async def claim(self, spec: RunSpec) -> OwnedRun:
        """Claim a new or an existing run, and return it with its steps.

        Raises:
            AlreadyFinished: The run has ended, and its payload is the same.
            RunIdConflict: The ledger has an unfinished run of another job, or with other arguments, under this id.
        """
        return await claim_run(self._database, spec, self._owner, self._code_version)

    async def find(self, run_id: str) -> KnownRun | None:
        """Return a run, or None. Jobs without a durable loop are not in the ledger."""
        async with self._database.connection() as connection:
            row = (await connection.execute(query("find_run"), {"id": run_id})).one_or_none()
        if row is None:
            return None
        return KnownRun(row.job, row.arguments, row.state, row.error, row.finished, row.payload, row.queue)

    async def list_runs(
        self,
        *,
        run_id: str | None = None,
        ids: Sequence[str] | None = None,
        job: str | None = None,
        state: str | None = None,
        search: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> list[RunRecord]:
        """Return runs with the sums of their steps, newest first. With `run_id`, return that run with its steps.

        Args:
            run_id: Only this run.
            ids: Only these runs, without their steps.
            job: Only runs of this job.
            state: Only runs in this state.
            search: Only runs with this text in their id, job, arguments or error; case does not count.
            before: Only runs that began before this one: its `created_at` and its id.
            limit: The most runs to return.
        """
        before_at, before_id = before or (None, None)
        async with self._database.connection() as connection:
            chosen = ids if run_id is None else [run_id]
            values: dict[str, Any] = {"ids": chosen, "job": job, "state": state, "search": search, "limit": limit}
            values |= {"before_at": before_at, "before_id": before_id}
            runs = [RunRecord(**row._mapping) for row in await connection.execute(query("list_runs"), values)]
            if run_id is not None:
                for run in runs:
                    rows = await connection.execute(query("list_steps"), {"run_id": run_id})
                    run.steps.extend(StepRecord(**row._mapping) for row in rows)
                    ranges = await connection.execute(query("list_ranges"), {"run_id": run_id})
                    run.ranges.extend(RangeState(**row._mapping) for row in ranges)
        return runs

    async def list_ended(self, limit: int) -> list[EndedRun]:
        """Return the runs that ended last, `limit` at most, without helper runs."""
        async with self._database.connection() as connection:
            rows = await connection.execute(query("list_ended"), {"limit": limit})
            return [EndedRun(**row._mapping) for row in rows]

    async def add_selection(self, run_id: str, subset: str | None, first: list[Any] | None) -> bool:
        """Store the part of the walks that an operator has selected for a run. Return False if it has one."""
        values = {"run_id": run_id, "subset": subset, "first": None if first is None else json.dumps(first)}
        async with self._database.connection() as connection:
            return (await connection.execute(query("insert_selection"), values)).one_or_none() is not None

    async def add_orders(self, orders: Sequence[OrderRecord]) -> None:
        """Add orders of operators. Those that the ledger has are left as they are."""
        texts = ("entry_id", "order_name", "ordered_by", "targets", "details")
        rows = [(one.id, one.order, one.ordered_by, one.targets, one.details) for one in orders]
        values: dict[str, Any] = {
            name: [storable_json(row[at]) if at > 2 else storable(row[at]) for row in rows]
            for at, name in enumerate(texts)
        }
        async with self._database.connection() as connection:
            await connection.execute(query("insert_orders"), values | {"at": [one.at for one in orders]})

    async def list_orders(self, *, before: int | None = None, limit: int = 50) -> list[OrderRecord]:
        """Return orders of operators, newest first; with `before`, only those with a smaller number."""
        async with self._database.connection() as connection:
            rows = await connection.execute(query("list_orders"), {"before": before, "limit": limit})
            return [OrderRecord(**row._mapping) for row in rows]

    async def list_samples(self, run_id: str) -> list[Sample]:
        """Return the samples of a run, in their order."""
        async with self._database.connection() as connection:
            rows = await connection.execute(query("list_samples"), {"run_id": run_id})
            return [Sample(**row._mapping) for row in rows]

    async def append_logs(self, logs: Mapping[str, Sequence[str]], *, lines: int, size: int) -> None:
        """Append lines to the logs of runs. A run that is not in the ledger gets none.

        Args:
            logs: the lines by the id of their run, each a JSON object in ASCII.
            lines: the most lines that a run keeps: the last ones.
            size: the most bytes that a run keeps.
        """
        values = {"ids": list(logs), "texts": [json.dumps(list(one)) for one in logs.values()]}
        async with self._database.connection() as connection:
            await connection.execute(query("append_logs"), values | {"most_lines": lines, "most_bytes": size})

    async def read_log(self, run_id: str) -> list[str]:
        """Return the lines of a run's log, as they were appended."""
        async with self._database.connection() as connection:
            lines: list[str] | None = await connection.scalar(query("read_log"), {"run_id": run_id})
            return lines or []

    async def find_data_migration(self, name: str) -> tuple[bool, Any]:
        """Return whether a data migration is done, and its result."""
        async with self._database.connection() as connection:
            row = (await connection.execute(query("find_data_migration"), {"name": name})).one_or_none()
            return (False, None) if row is None else (True, row.result)

    async def find_missing_migrations(self, names: Sequence[str]) -> list[MissingMigration]:
        """Return those of the data migrations that are not done, in the given order."""
        async with self._database.connection() as connection:
            rows = await connection.execute(query("find_missing_migrations"), {"names": list(names)})
            return [MissingMigration(**row._mapping) for row in rows]

    async def set_verified(self, run_id: str, error: str | None, *, is_once: bool = False) -> bool:
        """Record whether a run that has ended is complete. Return False if it has not ended, or has failed.

        Args:
            run_id: The run.
            error: The rows that it has left undone, in one line; None if there are none.
            is_once: Whether its job is a data migration.
        """
        async with self._database.connection() as connection:
            row = (await connection.execute(query("set_verified"), {"id": run_id, "error": error})).one_or_none()
            if row is not None and is_once and error is None:
                values = {"id": run_id, "job": row.job, "result": json.dumps(row.result)}
                await connection.execute(query("record_data_migration"), values)
            return row is not None

    async def find_orphans(
        self, *, idle_seconds: float, after: tuple[datetime, str] | None = None, limit: int = 1000
    ) -> tuple[list[RunSpec], tuple[datetime, str] | None]:
        """Return unfinished runs that have not been touched for `idle_seconds`, a page of them.

        Args:
            idle_seconds: The time, in seconds.
            after: The place that the last page has returned; None for the first page.
            limit: The size of a page.

        Returns:
            The runs, and the place of the next page; None after the last one.
        """
        after_at, after_id = after or (datetime.min.replace(tzinfo=UTC), "")
        values = {"idle_seconds": idle_seconds, "after_at": after_at, "after_id": after_id, "limit": limit}
        async with self._database.connection() as connection:
            rows = (await connection.execute(query("find_orphans"), values)).all()
        specs = [RunSpec(row.id, row.job, row.queue, row.payload) for row in rows]
        return specs, (rows[-1].updated_at, rows[-1].id) if len(rows) == limit else None

    async def find_unfinished(self, run_ids: list[str]) -> set[str]:
        """Return those of some runs that have not ended."""
        async with self._database.connection() as connection:
            return set(await connection.scalars(query("find_unfinished"), {"ids": run_ids}))

    async def retry(
        self,
        run_id: str,
        *,
        from_start: bool,
        accept_statement: bool = False,
        revise: Callable[[str], str] = lambda payload: payload,
    ) -> RunSpec | None:
        """Reopen a finished run. The caller enqueues it.

        Args:
            run_id: Id of the run.
            from_start: Delete its checkpoints.
            accept_statement: Continue its steps with the statements of the next attempt, over the same keys.
            revise: Returns the payload to store, given the current one.

        Returns:
            The run, or None if it has not finished.
        """
        async with self._database.connection() as connection:
            if from_start:
                await connection.execute(query("delete_steps"), {"id": run_id})
            if accept_statement:
                await connection.execute(query("accept_any_statement"), {"id": run_id})
            row = (await connection.execute(query("retry_run"), {"id": run_id})).one_or_none()
            if row is None:
                await connection.rollback()
                return None
            payload = revise(row.payload)
            if payload != row.payload:
                await connection.execute(query("update_payload"), {"id": run_id, "payload": payload})
            return RunSpec(run_id, row.job, row.queue, payload)

    async def list_dead(
        self,
        *,
        ids: list[str] | None = None,
        job: str | None = None,
        before: datetime | None = None,
        limit: int | None = None,
    ) -> list[DeadRun]:
        """Return dead runs, newest first, that match every argument given."""
        async with self._database.connection() as connection:
            values = {"ids": ids, "job": job, "before": before, "limit": limit}
            rows = await connection.execute(query("list_dead"), values)
            return [DeadRun(**row._mapping) for row in rows]

    async def delete_dead(self, ids: list[str]) -> int:
        """Delete dead runs. Returns their number."""
        async with self._database.connection() as connection:
            return (await connection.execute(query("delete_dead"), {"ids": ids})).rowcount

    async def delete_finished(self, *, keep_seconds: float, after: DeletedRun | None, limit: int) -> list[DeletedRun]:
        """Delete finished runs with their steps. Runs with quarantined rows stay.

        Args:
            keep_seconds: Age, since the end of the run, at which it is deleted.
            after: The last run that the previous call deleted; None to start.
            limit: The most runs to delete.

        Returns:
            The deleted runs in order; fewer than `limit` if no more runs match.
        """
        at, id_ = (after.finished_at, after.id) if after else (datetime.min.replace(tzinfo=UTC), "")
        values = {"keep_seconds": keep_seconds, "after_at": at, "after_id": id_, "limit": limit}
        async with self._database.connection() as connection:
            rows = await connection.execute(query("delete_finished"), values)
            return sorted(DeletedRun(row.finished_at, row.id, row.state) for row in rows)

    async def delete_orders(self, *, keep_seconds: float, limit: int) -> int:
        """Delete the records of orders that are older than `keep_seconds`, `limit` at most. Returns their number."""
        async with self._database.connection() as connection:
            values = {"keep_seconds": keep_seconds, "limit": limit}
            return (await connection.execute(query("delete_orders"), values)).rowcount

    async def read_application(self) -> str:
        """Return a short name for the application whose ledger this is, the same in all of its processes.

        Applications that share a Redis, and each have a database of their own, have different names.
        """
        async with self._database.connection() as connection:
            identity = (await connection.execute(query("read_identity"))).scalar_one()
        return hashlib.sha256(identity.encode()).hexdigest()[:8]

    async def list_cron_firings(self) -> dict[tuple[str, str], datetime]:
        """Return the last due time of each cron line that was fired or skipped, by job and line."""
        async with self._database.connection() as connection:
            rows = await connection.execute(query("list_cron_firings"))
            return {(row.job, row.line): row.due_at for row in rows}

    async def start_cron_line(self, job: str, line: str, moment: datetime) -> None:
        """Record the moment from which a cron line counts, unless the ledger has the line. Earlier due times do not
        count."""
        async with self._database.connection() as connection:
            await connection.execute(query("start_cron"), {"job": job, "line": line, "moment": moment})

    @asynccontextmanager
    async def claim_firing(self, job: str, line: str, due_at: datetime) -> AsyncIterator[bool]:
        """Claim a due time of a cron line. The claim commits when the block ends, and rolls back when it raises.

        Yields:
            True if this call claimed the due time; False if it was fired or skipped before.
        """
        async with self._database.connection() as connection:
            values = {"job": job, "line": line, "due_at": due_at}
            yield (await connection.execute(query("fire_cron"), values)).one_or_none() is not None
