"""`ctx.stream`: one server-side cursor, one snapshot, and a writing transaction for each partition."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal

from sqlalchemy import Select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.catalog import count_rows, sql_text, table_name, weigh_rows
from worker.batch.compiled import CompiledStatement
from worker.batch.failing_rows import probe_row
from worker.batch.fingerprint import select_fingerprint
from worker.batch.key_choice import find_resume_key, find_selection_problem, resolve_order
from worker.batch.keyset import Keyset
from worker.batch.page import RowShape
from worker.batch.partitions import has_all_rows, names_one_table, within
from worker.batch.range_ends import Division, find_ranges
from worker.batch.selection import Selection
from worker.batch.snapshot import SnapshotExporter, SnapshotReader
from worker.batch.source import Bounds, OpenStep, Page
from worker.batch.transaction import BatchTransaction
from worker.batch.walk_statements import WalkStatements
from worker.db.engine import Database
from worker.db.statement_internals import read_select_clauses
from worker.errors import UnsupportedStatement, UsageError
from worker.ledger.records import RangeBounds

logger = logging.getLogger("longhaul.batch")

_REPLAY_POLL_SECONDS = 0.05
_LOCK_TIMEOUT_SECONDS = 5
#: After a read that has failed: the driver decodes as many rows ahead, so that the failing one may be behind the batch.
_CAREFUL_ROWS = 1_000
_WRITTEN = "SELECT pg_catalog.pg_current_wal_lsn() - '0/0'::pg_lsn"
_REPLAYED = text(
    "SELECT NOT pg_catalog.pg_is_in_recovery() OR pg_catalog.pg_last_wal_replay_lsn() - '0/0'::pg_lsn >= :position"
)


class StreamSource:
    """The rows of a result, in one snapshot; see `JobContext.stream`.

    Args:
        statement: The select.
        database: The database of the worker.
        on_restart: "start_over" accepts a result without a key to continue behind.
        replica: Whether to read at the replica, if there is one.
        max_snapshot_seconds: The age at which a snapshot is renewed; 0 for never.
        lock_timeout_seconds: The `lock_timeout` of the database; 0 for none.
    """

    kind = "stream"

    def __init__(
        self,
        statement: Select[Any],
        database: Database,
        *,
        on_restart: Literal["start_over"] | None = None,
        replica: bool = False,
        max_snapshot_seconds: float = 0,
        lock_timeout_seconds: float = 0,
    ) -> None:
        if not isinstance(statement, Select):
            raise UnsupportedStatement(f"stream takes a select(), not {type(statement).__name__}")
        statement = self._statement = resolve_order(statement, kind=self.kind)
        self._starts_over = on_restart == "start_over"
        self._replica = database.replica if replica else None
        self._database = self._replica or database
        self._max_age_seconds = max_snapshot_seconds
        self._lock_timeout_seconds = lock_timeout_seconds
        self._writer: AsyncConnection | None = None
        self._keyset: Keyset | None = None
        self._reader: SnapshotReader | None = None
        self._replica_position: Decimal | None = None
        self._has_warned_of_age = False
        self._is_reader_outdated = False
        self._careful_rows = 0  # rows to read without rows ahead, because a read has failed
        self._upper: list[Any] | None = None  # the last key of the range that this hand walks
        self._condition: str | None = None  # of its partition
        self._exporter: SnapshotExporter | None = None
        self._snapshot: str | None = None  # of the first hand, which has exported it
        self.text = sql_text(statement)
        self.fingerprint = select_fingerprint(statement)

    async def open(self, step: OpenStep) -> Bounds:
        """Choose the key behind which a restart continues."""
        self._name = f"step={step.name} run={step.run_id}"
        await self._limit_lock_waits(step.connection)
        self._keyset, problem = await find_resume_key(step.connection, self._statement)
        if self._keyset is None:
            if not self._starts_over:
                raise UnsupportedStatement(
                    f"stream: this result has no key to continue behind after a restart, because {problem}. Order it "
                    f"by a unique, not-null key, or set on_restart='start_over' to do every row again"
                )
            logger.warning("stream cannot resume, a restart starts over: %s reason=%r", self._name, problem)
        if step.selection is not None:
            await self._ensure_selectable(step.connection, step.selection)
            self._statement = step.selection.apply(self._statement, self._keyset)
        if step.only_keys is not None and self._keyset is not None:
            self._statement = self._statement.where(self._keyset.among(step.only_keys))
        total = row_bytes = None
        if self._keyset is not None and not read_select_clauses(self._statement).group_by:
            row_bytes = await weigh_rows(step.connection, self._statement, self._keyset.order_by())
        if step.is_new:
            total = await count_rows(step.connection, self._statement, exactly=step.count_exactly)
        return Bounds(
            key=self._keyset.describe() if self._keyset else [],
            total=total,
            is_resumable=self._keyset is not None,
            table=table_name(self._keyset) if self._keyset else "",
            row_bytes=row_bytes,
        )

    async def _ensure_selectable(self, connection: AsyncConnection, selection: Selection) -> None:
        """Raise `UnsupportedStatement` for a subset of the rows that groups or other results are computed from."""
        problem = None if selection.subset is None else await find_selection_problem(connection, self._statement)
        if problem is not None:
            first = " select whole groups with --from," if self._keyset is not None else ""
            raise UnsupportedStatement(
                f"stream: --subset would leave out rows that the results are computed from, because the statement has "
                f"{problem}: run the job without --subset,{first} or give it an argument for its own where()"
            )

    def describe(self, size: int) -> WalkStatements:
        """Return the one statement of the stream; see `DescribedSource`."""
        return WalkStatements(keyset=self._keyset, keys=None, statement=self._statement)

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[Any] | None:
        """Return the next partition from the reader's own connection."""
        await self._renew_snapshot(cursor)
        if self._reader is not None and (self._reader.limit is not None or self._is_reader_outdated):
            await self._close_reader()
        if self._reader is None and self._replica is not None and not await self._has_replica_caught_up(transaction):
            await asyncio.sleep(_REPLAY_POLL_SECONDS)
            return Page()
        try:
            if self._reader is None:
                self._reader = await self._open_reader(cursor, limit=size if self._careful_rows > 0 else None)
            page = await self._reader.next_page(size)
        except Exception:
            self._careful_rows = _CAREFUL_ROWS if self._keyset is not None else 0
            await self._close_reader()
            raise
        self._careful_rows -= len(page.rows)
        if not page.rows:
            return None
        return replace(page, is_last=self._reader.at_end, check=self._reader.check_unchanged)

    async def split(self, connection: AsyncConnection, cursor: Any, count: int, size: int) -> list[RangeBounds]:
        """Return ranges with the same number of rows, or groups; see `RangedSource`."""
        keyset = self._keyset
        if keyset is None:
            raise UnsupportedStatement(
                "stream: parallel= divides a result by its key, and this result has none: order it by a unique, "
                "not-null key, or walk it with one hand"
            )
        keys = self._statement.with_only_columns(*keyset.columns, maintain_column_froms=True).order_by(None)
        values: dict[str, Any] = {}
        if cursor is not None:
            keys, values = keys.where(keyset.after()), keyset.values("after", keyset.decode(cursor))
        is_grouped = bool(read_select_clauses(self._statement).group_by)
        by_partition = not is_grouped and names_one_table(self._statement)
        options = {"by_partition": by_partition, "may_sample": not is_grouped}
        options["is_whole"] = not is_grouped and has_all_rows(self._statement, self.text)
        return await find_ranges(
            connection, Division(keyset, keys, values, count, size, **options), lower=cursor, last=None
        )

    def enter_range(self, last: list[Any], condition: str | None) -> None:
        """Let the walk return the keys of one range; see `RangedSource`."""
        assert self._keyset is not None  # noqa: S101
        self._upper, self._condition = self._keyset.decode(last), condition
        self._is_reader_outdated = self._reader is not None

    async def export_snapshot(self) -> str | None:
        """Take the snapshot of the walk, and return its id for other hands; None at a replica."""
        if self._replica is not None:
            return None
        self._exporter = SnapshotExporter(await self._database.engine.connect())
        self._snapshot = await self._exporter.export()
        return self._snapshot

    def import_snapshot(self, snapshot: str | None) -> None:
        """Read in the snapshot of another hand, as long as that is open."""
        self._snapshot = snapshot

    async def list_keys(self, transaction: BatchTransaction, cursor: Any, size: int) -> list[list[Any]]:
        """Return the keys of the next rows, without reading the rows. They are not of the reader's snapshot."""
        keyset = self._keyset
        if keyset is None:
            return []
        keys = self._statement.with_only_columns(*keyset.cursor_columns, maintain_column_froms=True)
        keys, values = keys.order_by(None).order_by(*keyset.order_by()).limit(size), {}
        if cursor is not None:
            keys, values = keys.where(keyset.after()), keyset.values("after", keyset.decode(cursor))
        if self._upper is not None:
            keys = keys.where(keyset.up_to(), *within(self._condition))
            values = values | keyset.values("upper", self._upper)
        sql, arguments = CompiledStatement(keys, transaction.connection.dialect).bind(values)
        return [keyset.encode(row) for row in await (await transaction.driver()).fetch(sql, *arguments)]

    async def find_unreadable(
        self, transaction: BatchTransaction, cursor: Any, blames_row: Callable[[Exception], bool]
    ) -> Page[Any] | None:
        """Return a page that passes over the next row, if it cannot be read; see `KeyedSource`."""
        keys = await self.list_keys(transaction, cursor, 1)
        if self._keyset is None or not keys:
            return None
        row = RowShape(self._statement, self._keyset).statement.where(self._keyset.one_of())
        values = self._keyset.array_values(keys)
        if not await probe_row(transaction, row, values, blames_row):
            return None
        self._careful_rows = 0
        return Page(cursor=keys[0], first_key=keys[0], last_key=keys[0], row_keys=lambda: keys)

    async def close(self) -> None:
        """Close the reader."""
        try:
            await self._close_reader()
            await self._close_exporter()
        finally:
            writer, self._writer = self._writer, None
            if writer is not None:
                with suppress(SQLAlchemyError):  # a lost connection has lost its settings too
                    await writer.execute(text("RESET lock_timeout"))
                    await writer.commit()

    async def _limit_lock_waits(self, writer: AsyncConnection) -> None:
        """Limit the lock waits of the writing connection while the stream is open.

        The reader holds a lock on its tables. If an ALTER TABLE waits for that lock, and the writer waits behind the
        ALTER TABLE, the reader waits for the writer in this process: a deadlock that PostgreSQL cannot see. The lock
        timeout fails the partition; the reader closes, and the partition is attempted again.
        """
        if self._lock_timeout_seconds or self._database.pooled:
            return
        self._writer = writer
        await writer.execute(text(f"SET lock_timeout = '{_LOCK_TIMEOUT_SECONDS}s'"))

    async def _close_exporter(self) -> None:
        exporter, self._exporter, self._snapshot = self._exporter, None, None
        if exporter is not None:
            await exporter.close()

    async def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        self._is_reader_outdated = False
        if reader is not None:
            await reader.close()

    async def _open_reader(self, cursor: Any, *, limit: int | None) -> SnapshotReader:
        shape = RowShape(self._statement, self._keyset)
        statement, values = shape.statement, {}
        if self._keyset is not None and cursor is not None:
            statement = statement.where(self._keyset.after())
            values = self._keyset.values("after", self._keyset.decode(cursor))
        if self._keyset is not None and self._upper is not None:
            statement = statement.where(self._keyset.up_to(), *within(self._condition))
            values |= self._keyset.values("upper", self._upper)
        # A commit of the writer would close the cursor, so the reader has a connection of its own.
        connection = await self._database.engine.connect()
        reader = SnapshotReader(connection, shape, limit=limit)
        try:
            if self._snapshot is not None and not await reader.import_snapshot(self._snapshot):
                logger.info("the snapshot of a stream has ended, going on in a new one: %s", self._name)
                self._snapshot = None
            await reader.open(statement if limit is None else statement.limit(limit), values)
        except BaseException:
            await reader.close()
            raise
        return reader

    async def _renew_snapshot(self, cursor: Any) -> None:
        """Close a snapshot that is too old: VACUUM cannot remove rows that have died since its start."""
        reader, limit = self._reader, self._max_age_seconds
        if limit and self._exporter is not None and self._exporter.age_seconds > limit:
            await self._close_exporter()  # the readers of all hands go on in new snapshots
        if reader is None or not limit or reader.age_seconds <= limit or self._has_warned_of_age:
            return
        if self._keyset is None:
            self._has_warned_of_age = True
            logger.warning(
                "stream snapshot is old and holds VACUUM back; without a key it cannot be renewed: %s age_seconds=%.0f",
                self._name,
                reader.age_seconds,
            )
            return
        logger.info(
            "renewing the snapshot of a stream: %s age_seconds=%.0f cursor=%s", self._name, reader.age_seconds, cursor
        )
        await self._close_reader()

    async def _has_replica_caught_up(self, transaction: BatchTransaction) -> bool:
        """Return whether a snapshot of the replica has everything that was committed before, so that no row is omitted.

        Raises:
            UsageError: The server is a replica of another kind, which does not tell its position.
        """
        if self._replica_position is None:
            self._replica_position = await (await transaction.driver()).fetchval(_WRITTEN)
            await transaction.end_read()
        async with self._database.connection() as connection:
            replayed = await connection.scalar(_REPLAYED, {"position": self._replica_position})
        if replayed is None:
            raise UsageError("database.replica_url: pg_last_wal_replay_lsn() is null: it is not a streaming replica")
        if replayed:
            self._replica_position = None  # the next snapshot waits for the position at that time
        return bool(replayed)
