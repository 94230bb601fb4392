"""PgBouncer in transaction mode: each transaction may be in another session of the server, and other clients follow.

So nothing that a session keeps may be relied on, or left behind:

- Prepared statements are unnamed, and sent again with each execution: a name would be unknown in the next transaction,
  taken by another client (asyncpg #1058, SQLAlchemy #6467), or left in a session for ever. This asks nothing of
  PgBouncer, whose `max_prepared_statements` (1.21 and later) may be 0 or any number.
- Time limits and the name of the job are set by `SET LOCAL`, in one message with BEGIN. As parameters of the
  connection, PgBouncer refuses them, or, where `ignore_startup_parameters` has them, forgets them.
- What needs no transaction elsewhere has one here (`Driver.reading`).

The pool of this process stays: its connections are PgBouncer's clients, which hold none of the server's sessions
outside of a transaction. A pool of none would greet PgBouncer anew for each transaction, with no bound to their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import asyncpg

from worker.db.driver import PooledConnection


class PoolerDetector:
    """The way to the server: straight, or through PgBouncer. `connect` is SQLAlchemy's event `do_connect`.

    Args:
        pgbouncer: whether it is there; "auto" to find out with the first connection.
        local_settings: returns what a transaction has to set behind PgBouncer.
    """

    def __init__(self, pgbouncer: bool | Literal["auto"], local_settings: Callable[[], Mapping[str, str]]) -> None:
        self._local_settings = local_settings
        #: Whether PgBouncer is there; None until that is found out.
        self.pooled = None if pgbouncer == "auto" else pgbouncer

    def connect(self, dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        """Open a connection that suits PgBouncer; None where there is none, for SQLAlchemy to open its own."""
        if self.pooled is False:
            return None
        suited = parameters | {
            "connection_class": PooledConnection,
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            # PgBouncer shows it in SHOW CLIENTS; of the others, see above.
            "server_settings": {"application_name": parameters["server_settings"]["application_name"]},
        }
        connection = dialect.connect(*arguments, **suited)
        connection.driver_connection.local_settings = self._local_settings
        if self.pooled is None:
            try:
                self.pooled = connection.run_async(_answers_for_another)
            finally:
                if not self.pooled:
                    connection.close()
        return connection if self.pooled else None


async def _answers_for_another(raw: asyncpg.Connection) -> bool:
    """Tell whether a pooler stands between: what greeted us is another process than what answers.

    The key for cancelling, which a connection is greeted with, has the process id of its backend. PgBouncer makes keys
    of its own up, as other poolers do: a backend's would not hold beyond a transaction.
    """
    async with raw.transaction(readonly=True):
        return bool(await raw.fetchval("SELECT pg_catalog.pg_backend_pid()") != raw.get_server_pid())
