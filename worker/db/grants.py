"""The privileges in PostgreSQL that each kind of role needs on the ledger, and no more."""

from __future__ import annotations

from typing import Literal, get_args

from sqlalchemy.dialects.postgresql import dialect

from worker.db.tables import SCHEMA

RoleKind = Literal["worker", "client", "enqueue", "reader"]
KINDS: tuple[str, ...] = get_args(RoleKind)

_QUOTE = dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]
#: The columns that a client may write: not the mark, nor the problem that a relay has found.
_OUTBOX_COLUMNS = "run_id, job, queue, payload, due_at, priority, options"
#: The rights that the statements of a worker need on each table. tests/roles fails if one is missing or not needed.
WORKER_PRIVILEGES = {
    "run": "SELECT, INSERT, UPDATE, DELETE",
    "step": "SELECT, INSERT, UPDATE, DELETE",
    "step_range": "SELECT, INSERT, UPDATE",
    "quarantine": "SELECT, INSERT, DELETE",
    "skipped": "SELECT, INSERT, DELETE",
    "part": "SELECT, INSERT, DELETE",
    "data_migration": "SELECT, INSERT",
    "sample": "SELECT, INSERT, UPDATE, DELETE",
    "run_log": "SELECT, INSERT, UPDATE",
    "selection": "SELECT, INSERT, DELETE",
    "outbox": f"SELECT, INSERT ({_OUTBOX_COLUMNS}), UPDATE (problem), DELETE",
    "operator_order": "SELECT, INSERT, DELETE",
    "cron_firing": "SELECT, INSERT, UPDATE",
}
#: The tables that a reader reads: all but the selections of `worker try`.
READER_TABLES = tuple(table for table in WORKER_PRIVILEGES if table != "selection")
_ENQUEUE = f"{SCHEMA}.enqueue(text, jsonb, text, interval, text, integer)"


def grants(kind: RoleKind, role: str) -> list[str]:
    """Return the GRANT statements for a role. The owner of the schema runs them after each `worker migrate`.

    Args:
        kind: "worker" runs jobs and operator commands; "client" enqueues in its own transactions
            (`client.enqueue_in`, `worker.enqueue`), and reads nothing; "enqueue" may call the function
            `worker.enqueue`, and nothing else; "reader" looks at runs (`worker runs`, `worker dead`,
            `worker quarantine`).
        role: Name of the role.
    """
    name = _QUOTE(role)
    usage = f"GRANT USAGE ON SCHEMA {SCHEMA} TO {name};"
    call = f"GRANT EXECUTE ON FUNCTION {_ENQUEUE} TO {name};"
    if kind == "enqueue":
        return [usage, call]
    if kind == "client":
        return [usage, call, f"GRANT INSERT ({_OUTBOX_COLUMNS}) ON {SCHEMA}.outbox TO {name};"]
    privileges = WORKER_PRIVILEGES if kind == "worker" else dict.fromkeys(READER_TABLES, "SELECT")
    return [
        usage,
        f"GRANT SELECT ON {SCHEMA}.schema_version TO {name};",
        *(f"GRANT {rights} ON {SCHEMA}.{table} TO {name};" for table, rights in privileges.items()),
        *([call] if kind == "worker" else []),
    ]
