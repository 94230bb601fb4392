"""The privileges in PostgreSQL that each kind of role needs on the ledger, and no more."""

from __future__ import annotations

from typing import Literal, get_args

from sqlalchemy.dialects.postgresql import dialect

from worker.db.tables import SCHEMA, metadata

RoleKind = Literal["worker", "client", "reader"]
KINDS: tuple[str, ...] = get_args(RoleKind)

_QUOTE = dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]


def grants(kind: RoleKind, role: str) -> list[str]:
    """Return the GRANT statements for a role. The owner of the schema runs them after each `worker migrate`.

    Args:
        kind: "worker" runs jobs and operator commands; "client" enqueues in its own transactions, which needs nothing
            but the outbox; "reader" looks at runs (`worker runs`, `worker dead`, `worker quarantine`).
        role: Name of the role.
    """
    name = _QUOTE(role)
    tables = {table.name: f"{SCHEMA}.{_QUOTE(table.name)}" for table in metadata.sorted_tables}
    statements = [f"GRANT USAGE ON SCHEMA {SCHEMA} TO {name};"]
    if kind == "client":
        if "outbox" in tables:
            statements.append(f"GRANT SELECT, INSERT ON {tables['outbox']} TO {name};")
        return statements
    statements.append(f"GRANT SELECT ON {SCHEMA}.schema_version TO {name};")
    privileges = "SELECT, INSERT, UPDATE, DELETE" if kind == "worker" else "SELECT"
    statements += [f"GRANT {privileges} ON {table} TO {name};" for table in tables.values()]
    return statements
