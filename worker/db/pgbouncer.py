"""PgBouncer in transaction mode: each transaction can run in another session of the server, which others use next.

No state of a session may therefore be relied on, or left behind:

- Prepared statements are unnamed, and sent again with each execution: a name would be unknown in the next transaction,
  used by another client (asyncpg #1058, SQLAlchemy #6467), or never removed. PgBouncer's `max_prepared_statements`
  (1.21 and later) may have any value.
- Time limits and the name of the job are set by `SET LOCAL`, in one message with BEGIN. PgBouncer refuses them as
  parameters of the connection, or ignores them if `ignore_startup_parameters` lists them.
- Queries that need no transaction elsewhere get one here (`Driver.reading`).

The pool of this process stays: its connections are clients of PgBouncer, which hold no session of the server outside of
a transaction. Without a pool, each transaction would open a connection to PgBouncer, and their number would be
unlimited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Literal

import asyncpg

from worker.db.driver import PooledConnection


class PoolerDetector:
    """Detects PgBouncer, and opens connections that suit it. `connect` is SQLAlchemy's event `do_connect`.

    Args:
        pgbouncer: whether connections go through PgBouncer; "auto" to detect it on the first connection.
        local_settings: returns the settings of a transaction behind PgBouncer, by name.
        bind: returns the class for connections whose commands are checked.
        seconds: longest wait for the answers of the first connection.
    """

    def __init__(
        self,
        pgbouncer: bool | Literal["auto"],
        local_settings: Callable[[], Mapping[str, str]],
        *,
        bind: Callable[[type[PooledConnection]], type[PooledConnection]],
        seconds: float,
    ) -> None:
        self._local_settings = local_settings
        self._class = bind(PooledConnection)
        self._seconds = seconds
        #: Whether connections go through PgBouncer; None until that is detected.
        self.pooled = None if pgbouncer == "auto" else pgbouncer

    def connect(self, dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        """Open a connection that suits PgBouncer; return None if there is none, and SQLAlchemy opens its own."""
        if self.pooled is False:
            return None
        suited = parameters | {
            "connection_class": self._class,
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            # PgBouncer shows it in SHOW CLIENTS; of the others, see above.
            "server_settings": {"application_name": parameters["server_settings"]["application_name"]},
        }
        connection = dialect.connect(*arguments, **suited)
        connection.driver_connection.local_settings = self._local_settings
        if self.pooled is None:
            try:
                self.pooled = connection.run_async(self._answers_for_another)
            finally:
                if not self.pooled:
                    connection.close()
        return connection if self.pooled else None

    async def _answers_for_another(self, raw: asyncpg.Connection) -> bool:
        """Return whether a pooler is between: another process sent the cancellation key than the one that answers.

        The server sends its process id with the key for cancellations when a connection opens. Poolers send keys of
        their own, because the key of a backend is valid for one transaction only.
        """
        async with asyncio.timeout(self._seconds), raw.transaction(readonly=True):
            return bool(await raw.fetchval("SELECT pg_catalog.pg_backend_pid()") != raw.get_server_pid())
