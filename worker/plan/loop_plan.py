"""Describes one loop of a job that is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.attempt.attempt import Attempt
from worker.batch.catalog import estimate_rows
from worker.batch.chunks import ChunksSource
from worker.batch.key_order import describe_unserved, find_index, make_index_statement
from worker.batch.selection import Selection
from worker.batch.sizing import make_sizer
from worker.batch.skip_locked import SkipLockedSource
from worker.batch.source import Bounds, OpenStep, SkippedRows
from worker.batch.stream import StreamSource
from worker.batch.sweep import SweepSource
from worker.batch.walk_statements import WalkStatements
from worker.db.engine import Database
from worker.errors import LonghaulError
from worker.plan.facts import (
    ChildFacts,
    Pace,
    Replica,
    TableFacts,
    explain,
    find_children,
    find_pace,
    list_replicas,
    list_triggers,
    read_table,
)

_PREPARER = asyncpg_dialect().identifier_preparer  # type: ignore[no-untyped-call]
_DEAD_SHARE = 0.2


@dataclass(frozen=True)
class LoopPlan:
    """The plan of one loop.

    Attributes:
        step: The name of the step.
        kind: The kind of the loop, such as chunks.
        refusal: Why the walk is refused; empty if it is not.
        sql: The statement of a batch, without its values.
        explain: Its plan. Texts are replaced, because they may be secrets.
        table: The walked table.
        key: The columns of the key, with their direction.
        index: The index that serves the order of the key; None if there is none.
        create_index: The statement that creates the missing index; None if none is missing.
        rows: Estimated rows; None if they are unknown.
        batch_rows: Rows in the first batch.
        batches: Estimated batches; None if they are unknown.
        seconds: Estimated time at the pace of the last run; None if there was none.
        pace: The pace of the last run.
        locks: The locks that each batch takes.
        children: The foreign keys that a DELETE meets.
        triggers: The triggers that the changes fire.
        table_facts: Size and dead rows of the changed table.
        replicas: The replicas that receive the changes.
        warnings: What to look at before the run.
    """

    step: str
    kind: str
    refusal: str = ""
    sql: str = ""
    explain: list[str] = field(default_factory=list)
    table: str = ""
    key: list[str] = field(default_factory=list)
    index: str | None = None
    create_index: str | None = None
    rows: int | None = None
    batch_rows: int = 0
    batches: int | None = None
    seconds: float | None = None
    pace: Pace | None = None
    locks: list[str] = field(default_factory=list)
    children: list[ChildFacts] = field(default_factory=list)
    triggers: list[str] = field(default_factory=list)
    table_facts: TableFacts | None = None
    replicas: list[Replica] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class LoopPlanner:
    """Describes the loops of one job.

    Args:
        job: The name of the job.
        attempt: The attempt, which names the steps.
        database: A read-only database.
        selection: The part of each walk; None for all of it.

    Attributes:
        loops: The loops so far.
    """

    def __init__(self, job: str, attempt: Attempt, database: Database, selection: Selection | None = None) -> None:
        self._selection = selection
        self.loops: list[LoopPlan] = []
        self._job = job
        self._attempt = attempt
        self._database = database

    async def describe(self, kind: str, source: Any, options: Mapping[str, Any]) -> None:
        """Add the plan of a loop. A loop that the database refuses is described by the reason."""
        name = self._attempt.step_name(kind, options.get("name"))
        size = make_sizer(options.get("size"), self._attempt.settings.batch, kind=kind).size
        plan = LoopPlan(name, kind, batch_rows=size, sql=getattr(source, "text", str(source.fingerprint)))
        if not isinstance(source, ChunksSource | SkipLockedSource | SweepSource | StreamSource):
            # Opening another source could change something elsewhere, such as create a group of readers.
            refusal = "" if self._selection is None else f"{source.kind}: --subset and --from are for loops over tables"
            self.loops.append(replace(plan, refusal=refusal, warnings=["its rows are known only when it is read"]))
            return
        async with self._database.connection() as connection:
            try:
                try:
                    bounds = await source.open(_make_step(name, connection, self._attempt.settings, self._selection))
                    self.loops.append(plan)  # in place of what follows, if that fails
                    self.loops[-1] = await self._look(connection, plan, source, bounds, options)
                finally:
                    await source.close()
            except LonghaulError as error:
                self.loops.append(replace(plan, refusal=str(error)))

    async def _look(
        self, connection: AsyncConnection, plan: LoopPlan, source: Any, bounds: Bounds, options: Mapping[str, Any]
    ) -> LoopPlan:
        statements: WalkStatements = source.describe(plan.batch_rows)
        sql, lines = plan.sql, ["no row matches now"]
        if not bounds.is_empty:
            sql, lines = await explain(connection, statements.statement, dict(statements.values))
        keyset, keys, change = statements.keyset, statements.keys, statements.change
        table = bounds.table
        target = table if statements.target is None else _PREPARER.format_table(statements.target)
        facts = await read_table(connection, target) if target else None
        index = None if keyset is None or keys is None else await find_index(connection, keyset, keys)
        missing = keyset is not None and keys is not None and index is None
        examined = bounds.total
        if plan.kind == "sweep" and keys is not None:  # it examines all rows, whether they match or not
            examined = await estimate_rows(connection, keys, {})
        pace = await find_pace(connection, self._job, plan.step, plan.kind)
        rows = 0 if bounds.is_empty else bounds.total
        children = await find_children(connection, target) if target and change in (None, "DELETE") else []
        loop = replace(
            plan,
            refusal=describe_unserved(keyset, plan.kind)
            if missing and keyset and not options.get("allow_sort") and not options.get("unique")
            else "",
            sql=sql,
            explain=lines,
            table=table,
            key=[f"{column}{' desc' if direction == 'desc' else ''}" for column, _, direction in bounds.key],
            index=index,
            create_index=make_index_statement(keyset) if missing and keyset is not None else None,
            rows=rows,
            batches=None if examined is None or bounds.is_empty else -(-examined // plan.batch_rows),
            seconds=None if pace is None or rows is None else rows / pace.rows_per_second,
            pace=pace,
            locks=_describe_locks(plan.kind, table, target, statements, plan.batch_rows),
            children=children if plan.kind != "stream" else [],
            triggers=await list_triggers(connection, target, change) if target and plan.kind != "stream" else [],
            table_facts=facts,
            replicas=await list_replicas(connection),
        )
        return replace(loop, warnings=_find_warnings(loop, change))


def _describe_locks(kind: str, table: str, target: str, statements: WalkStatements, size: int) -> list[str]:
    if statements.change == "INSERT":
        parents = "the rows that the new rows refer to, until their commit: FOR KEY SHARE"
        return [f"ROW EXCLUSIVE on {target}, ACCESS SHARE on {table}", parents]
    if statements.change is not None:
        how = "FOR UPDATE" if statements.change == "DELETE" else "FOR NO KEY UPDATE, or FOR UPDATE if a key changes"
        return [f"ROW EXCLUSIVE on {table}", f"up to {size} rows of {table} at a time, until their commit: {how}"]
    if statements.locks:
        rows = f"up to {size} rows of {table} at a time, until their commit: FOR NO KEY UPDATE"
        return [f"ROW SHARE on {table}", rows]
    held = "until the end of the stream" if kind == "stream" else "while a batch is read"
    return [f"ACCESS SHARE {held}; no row is locked by the read"]


def _find_warnings(loop: LoopPlan, change: str | None) -> list[str]:
    """Return what to look at before the run."""
    found: list[str] = []
    if loop.create_index is not None:
        found.append(f"each batch sorts the rest of the table, because no index has its order: {loop.create_index}")
    if_deleted = "" if change == "DELETE" else "if the body deletes rows: "
    for child in loop.children:
        if not child.is_indexed:
            found.append(
                f"{if_deleted}each deleted row of {child.parent} reads all of {child.child}: {child.create_index}"
            )
        if child.on_delete != "check":
            found.append(f"{if_deleted}ON DELETE {child.on_delete} also changes {child.child} ({child.columns})")
    facts = loop.table_facts
    if facts is not None and not facts.is_analyzed:
        found.append(f"the table has no statistics, so the numbers of rows are guesses: ANALYZE {loop.table}")
    if facts is not None and facts.dead_rows > _DEAD_SHARE * max(1, facts.live_rows):
        found.append(f"{facts.dead_rows} dead rows beside {facts.live_rows} live ones: VACUUM {loop.table} first")
    return found


def _make_step(name: str, connection: AsyncConnection, settings: Any, selection: Selection | None) -> OpenStep:
    return OpenStep(
        run_id="plan",
        name=name,
        cursor=None,
        last=None,
        is_new=True,
        count_exactly=False,
        only_keys=None,
        connection=connection,
        share=0.0,
        skipped=NoSkippedRows(),
        settings=settings,
        selection=selection,
    )


class NoSkippedRows(SkippedRows):
    """Stores no rows: nothing is locked, or nothing lasts."""

    async def remember(self, raw: Any, keys: list[list[Any]]) -> None:
        """Do nothing."""

    async def list(self, raw: Any, limit: int) -> dict[int, Any]:
        """Return none."""
        return {}

    async def forget(self, raw: Any, ids: Sequence[int]) -> None:
        """Do nothing."""
