"""Reads what a walk will meet from the catalog and the statistics: children, triggers, dead rows, replicas, pace."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.catalog import Child, list_children
from worker.batch.compiled import CompiledStatement

_MOST_LEVELS = 8
_EVENTS = {"INSERT": 4, "DELETE": 8, "UPDATE": 16}

_TABLE = text("""
SELECT greatest(pg_class.reltuples, 0)::bigint AS rows, pg_catalog.pg_table_size(pg_class.oid) AS bytes,
       coalesce(n_live_tup, 0) AS live, coalesce(n_dead_tup, 0) AS dead, pg_class.reltuples >= 0 AS is_analyzed,
       greatest(last_vacuum, last_autovacuum) AS vacuumed_at, greatest(last_analyze, last_autoanalyze) AS analyzed_at
  FROM pg_catalog.pg_class
  LEFT JOIN pg_catalog.pg_stat_all_tables ON relid = pg_class.oid
 WHERE pg_class.oid = pg_catalog.to_regclass(CAST(:table AS text))
""")

_TRIGGERS = text("""
SELECT tgname AS name, tgtype AS type, tgfoid::regproc::text AS function
  FROM pg_catalog.pg_trigger
 WHERE tgrelid = pg_catalog.to_regclass(CAST(:table AS text)) AND NOT tgisinternal AND tgenabled <> 'D'
 ORDER BY tgname
""")

_REPLICAS = text("""
SELECT coalesce(application_name, '') AS name, coalesce(state, 'unknown') AS state, coalesce(sync_state, '') AS sync,
       extract(epoch FROM replay_lag)::float8 AS lag_seconds
  FROM pg_catalog.pg_stat_replication
 UNION ALL
SELECT 'slot ' || slot_name, 'inactive: it keeps the WAL of the walk', '', NULL
  FROM pg_catalog.pg_replication_slots WHERE NOT active
 ORDER BY 1
""")

_PACE = text("""
SELECT run.id AS run_id, step.rows, extract(epoch FROM step.updated_at - step.started_at)::float8 AS seconds
  FROM worker.step JOIN worker.run ON run.id = step.run_id
 WHERE run.job = :job AND step.name = :step AND step.kind = :kind AND step.rows > 0
 ORDER BY step.updated_at DESC
 LIMIT 1
""")

#: Literals of a plan that are shown: numbers, booleans, dates, times and intervals. A text may be a secret.
_SHOWN_LITERAL = re.compile(
    r"[-+]?[\d.:\s/TZ+-]*|true|false|infinity|-infinity|[\d.\s:-]*(days?|hours?|mons?|years?).*"
)
_LITERAL = re.compile(r"E?'((?:[^']|'')*)'")


@dataclass(frozen=True)
class TableFacts:
    """The size of a table, by its statistics.

    Attributes:
        rows: The planner's number of rows.
        bytes: Its size without its indexes.
        live_rows: Rows that are alive.
        dead_rows: Rows that VACUUM has not removed yet.
        is_analyzed: Whether it has statistics at all.
        vacuumed_at: The end of the last VACUUM, if it is known.
        analyzed_at: The end of the last ANALYZE, if it is known.
    """

    rows: int
    bytes: int
    live_rows: int
    dead_rows: int
    is_analyzed: bool
    vacuumed_at: datetime | None
    analyzed_at: datetime | None


@dataclass(frozen=True)
class ChildFacts:
    """A foreign key to a table whose rows may be deleted.

    Attributes:
        child: The table that has the foreign key.
        parent: The table that it refers to: the walked one, or a child whose rows are deleted too.
        columns: Its columns.
        on_delete: "CASCADE", "SET NULL", or "check" if its rows are only looked for.
        is_indexed: Whether an index finds the rows of a parent. If not, each deleted parent reads the whole child.
        create_index: The statement that creates the missing index; None if there is one.
    """

    child: str
    parent: str
    columns: str
    on_delete: str
    is_indexed: bool
    create_index: str | None


@dataclass(frozen=True)
class Replica:
    """A replica, or an inactive replication slot.

    Attributes:
        name: Its application name.
        state: Its state.
        sync: "async", "sync" or "quorum"; empty if it is unknown.
        lag_seconds: Its lag now; None if it is unknown.
    """

    name: str
    state: str
    sync: str
    lag_seconds: float | None


@dataclass(frozen=True)
class Pace:
    """The speed of the last run of a loop.

    Attributes:
        run_id: The run.
        rows_per_second: Its rows per second, with its waits.
    """

    run_id: str
    rows_per_second: float


async def read_table(connection: AsyncConnection, table: str) -> TableFacts | None:
    """Return the size of a table; None if there is no such table."""
    row = (await connection.execute(_TABLE, {"table": table})).one_or_none()
    if row is None:
        return None
    return TableFacts(row.rows, row.bytes, row.live, row.dead, row.is_analyzed, row.vacuumed_at, row.analyzed_at)


async def list_triggers(connection: AsyncConnection, table: str, change: str | None) -> list[str]:
    """Return the triggers of a table that a change fires; of any change if it is None."""
    rows = await connection.execute(_TRIGGERS, {"table": table})
    found = []
    for row in rows:
        events = [event for event, bit in _EVENTS.items() if row.type & bit]
        if change is None or change in events:
            when = "BEFORE" if row.type & 2 else "AFTER"
            each = "for each row" if row.type & 1 else "for each statement"
            found.append(f"{row.name}: {when} {' OR '.join(events)} {each}: {row.function}")
    return found


async def find_children(connection: AsyncConnection, table: str) -> list[ChildFacts]:
    """Return the foreign keys that a DELETE of a table's rows meets, and those of children that are deleted too."""
    found: list[ChildFacts] = []
    seen, parents = {table}, [table]
    for _ in range(_MOST_LEVELS):
        cascaded: list[str] = []
        for parent in parents:
            for child in await list_children(connection, parent):
                found.append(_describe_child(child, parent))
                if child.cascades and child.table not in seen:
                    seen.add(child.table)
                    cascaded.append(child.table)
        parents = cascaded
    return found


def _describe_child(child: Child, parent: str) -> ChildFacts:
    on_delete = "CASCADE" if child.cascades else "SET NULL" if child.updates else "check"
    cure = None if child.is_indexed else child.cure
    return ChildFacts(child.table, parent, child.columns, on_delete, child.is_indexed, cure)


async def list_replicas(connection: AsyncConnection) -> list[Replica]:
    """Return the replicas of the server, and the slots that keep WAL for one."""
    return [Replica(row.name, row.state, row.sync, row.lag_seconds) for row in await connection.execute(_REPLICAS)]


async def find_pace(connection: AsyncConnection, job: str, step: str, kind: str) -> Pace | None:
    """Return the speed of the last run of a loop; None if the ledger has none."""
    if await connection.scalar(text("SELECT pg_catalog.to_regclass('worker.step')")) is None:
        return None
    row = (await connection.execute(_PACE, {"job": job, "step": step, "kind": kind})).one_or_none()
    if row is None or row.seconds <= 0:
        return None
    return Pace(row.run_id, row.rows / row.seconds)


async def explain(connection: AsyncConnection, statement: Executable, values: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the SQL of a statement and its plan, without texts that could be secrets."""
    sql, arguments = CompiledStatement(statement, connection.dialect).bind(values)
    rows = (await connection.exec_driver_sql(f"EXPLAIN {sql}", tuple(arguments))).scalars()
    return " ".join(sql.split()), [_hide_texts(line) for line in rows]


def _hide_texts(line: str) -> str:
    return _LITERAL.sub(lambda found: found[0] if _SHOWN_LITERAL.fullmatch(found[1]) else "'…'", line)
