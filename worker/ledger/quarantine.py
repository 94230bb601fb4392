"""Rows that could not be processed: written by the run that failed on them, listed and deleted by operators."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from worker.db.engine import Database
from worker.errors import format_error
from worker.ledger.queries import query, source
from worker.ledger.records import QuarantinedRow, StepRecord
from worker.ledger.run_connection import RunConnection
from worker.ledger.text import format_traceback, shorten_traceback, storable, storable_json

_ROW_ID = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


class Quarantine:
    """All quarantined rows.

    Args:
        database: The database of the ledger.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_rows(
        self,
        *,
        run_id: str | None = None,
        row_ids: Sequence[int] | None = None,
        job: str | None = None,
        search: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[QuarantinedRow]:
        """Return quarantined rows, newest first.

        Args:
            run_id: Only rows of this run.
            row_ids: Only the rows with these ids.
            job: Only rows of this job.
            search: Only rows with this text in their run, job, key, values or error; case does not count.
            before: Only rows with a smaller id.
            limit: The most rows to return.
        """
        async with self._database.connection() as connection:
            ids = None if row_ids is None else list(row_ids)
            values = {"run_id": run_id, "ids": ids, "job": job, "search": search, "before": before, "limit": limit}
            rows = await connection.execute(query("list_quarantined"), values)
            return [QuarantinedRow(**row._mapping) for row in rows]

    async def count_rows(self, run_id: str) -> int:
        """Return the number of quarantined rows of a run."""
        async with self._database.connection() as connection:
            return int(await connection.scalar(query("count_rows"), {"run_id": run_id}) or 0)

    async def count_all(self, most: int) -> int:
        """Return the number of all quarantined rows, counted to `most`."""
        async with self._database.connection() as connection:
            return int(await connection.scalar(query("count_quarantine"), {"most": most}) or 0)

    async def delete_rows(self, *, run_id: str | None = None, row_ids: list[int] | None = None) -> int:
        """Delete quarantined rows. Returns their number; with neither argument, deletes none."""
        if run_id is None and row_ids is None:
            return 0
        async with self._database.connection() as connection:
            result = await connection.execute(query("delete_quarantined"), {"run_id": run_id, "ids": row_ids})
            return result.rowcount

    async def count_step_rows(self, run_id: str, step: str) -> int:
        """Return the number of quarantined rows of a step."""
        return (await self._count(run_id, step))[0]

    async def has_room(
        self, run_id: str, step: str, limit: float, *, rows: int, count: int = 1, read: int | None = None
    ) -> bool:
        """Return whether more rows of a step may be quarantined.

        Args:
            run_id: Id of the run.
            step: Name of the step.
            limit: The largest number of rows if at least 1, else the largest share of all rows: of the estimated number
                of rows, or of those that were read, if there are more or no estimate is known.
            rows: Rows of the committed batches of the step.
            count: The number of rows to quarantine.
            read: The number of rows that were read beside those of the committed batches. Default: `count`.
        """
        known, total = await self._count(run_id, step)
        return _is_within(limit, known, total, rows, count, count if read is None else read)

    async def _count(self, run_id: str, step: str) -> tuple[int, int | None]:
        """Return the number of quarantined rows of a step, and the total of its rows."""
        async with self._database.connection() as connection:
            values = {"run_id": run_id, "step": step}
            found = (await connection.execute(query("count_quarantined"), values)).one_or_none()
        return (0, None) if found is None else (found[0], found[1])


def _is_within(limit: float, known: int, total: int | None, rows: int, count: int, read: int) -> bool:
    return known + count <= (limit if limit >= 1 else limit * max(rows + known + read, total or 0))


class RunQuarantine:
    """The quarantine of one run, in the transactions of its batches.

    Args:
        connection: The run's own connection.
        run_id: Id of the run.
        retried: The run and the step whose quarantined rows this run retries, or None.
        row_ids: The ids of the rows to retry, with commas; None for all.
    """

    def __init__(
        self, connection: RunConnection, run_id: str, retried: tuple[str, str] | None, row_ids: str | None = None
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._retried = retried
        self._chosen = (
            None if row_ids is None else [int(text) for text in row_ids.split(",") if _ROW_ID.fullmatch(text)]
        )
        self._retried_ids: dict[str, list[int]] = {}

    async def add_row(self, raw: Any, step: StepRecord, key: list[Any], error: BaseException, row: Any) -> None:
        """Quarantine a row, in the transaction that `raw` has open."""
        trace = format_traceback(error)
        values = (json.dumps(key), storable(format_error(error)), shorten_traceback(trace), storable_json(row))
        await raw.execute(source("insert_quarantined"), self._run_id, step.name, *values)

    async def has_room_for_one(self, raw: Any, step: str, limit: float, *, rows: int) -> bool:
        """Return whether another row of a walk with several hands may be quarantined. Until the transaction that `raw`
        has open ends, the other hands wait to do the same; see `Quarantine.has_room` for the arguments."""
        await raw.execute(source("lock_quarantine"), self._run_id, step)
        known, total = await raw.fetchrow(source("recount_quarantined"), self._run_id, step) or (0, None)
        return _is_within(limit, known, total, rows, 1, 1)

    async def list_retried_keys(self) -> list[list[Any]]:
        """Return the keys of the rows that this run retries."""
        assert self._retried is not None  # noqa: S101
        run_id, step = self._retried
        values = {"run_id": run_id, "step": step, "ids": self._chosen}
        rows = (await self._connection.connection.execute(query("list_quarantined_keys"), values)).all()
        self._retried_ids = {}
        for row in rows:
            self._retried_ids.setdefault(json.dumps(row.key), []).append(row.id)
        return [row.key for row in rows]

    async def delete_retried_rows(self, raw: Any, row_keys: list[list[Any]]) -> None:
        """Delete rows that this run has processed, in the transaction that `raw` has open."""
        assert self._retried is not None  # noqa: S101
        found = [(text, self._retried_ids.get(text, [])) for text in map(json.dumps, row_keys)]
        await raw.execute(source("delete_quarantined_ids"), [row_id for _, ids in found for row_id in ids])
        # A key of equal value may be written in another way, e.g. 1 and 1.0: compare those as jsonb.
        if others := [text for text, ids in found if not ids]:
            await raw.execute(source("delete_quarantined_keys"), *self._retried, others)
