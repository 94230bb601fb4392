"""The outbox of a recorder: it holds runs that were enqueued in a transaction until that commits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, event, text
from sqlalchemy.orm import Session, SessionTransaction

from worker.job.definition import Job
from worker.queue.outbox import OutboxWriter

Row = Mapping[str, Any]


class RecordedOutbox:
    """Holds rows by session, in place of the table `worker.outbox`. The database needs no ledger.

    Args:
        put: called with each row when its transaction has committed.
    """

    def __init__(self, put: Callable[[Row], None]) -> None:
        self._put = put
        self._held: dict[Session | Connection, list[tuple[SessionTransaction | None, Row]]] = {}

    def writer(self, session: Any, job: Job[..., Any] | str) -> OutboxWriter:
        """Return a writer for the transaction of a session or a connection of SQLAlchemy, of either kind."""
        return _Writer(session, job if isinstance(job, str) else job.name, self)

    def close(self) -> None:
        """Remove the listeners from the sessions."""
        for target in self._held:
            for name, listener in self._listeners(target).items():
                event.remove(target, name, listener)
        self._held.clear()

    def hold(self, target: Session | Connection, rows: Sequence[Row]) -> None:
        """Hold rows until the transaction of a synchronous session or connection ends."""
        if target not in self._held:
            self._held[target] = []
            for name, listener in self._listeners(target).items():
                event.listen(target, name, listener)
        savepoint = target.get_nested_transaction() if isinstance(target, Session) else None
        self._held[target] += [(savepoint, row) for row in rows]

    def _listeners(self, target: Session | Connection) -> dict[str, Callable[..., None]]:
        if isinstance(target, Session):
            return {"after_commit": self._committed, "after_soft_rollback": self._rolled_back}
        return {"commit": self._committed, "rollback": self._dropped}

    def _committed(self, target: Session | Connection) -> None:
        if isinstance(target, Session) and target.in_nested_transaction():
            return  # a savepoint was released
        held, self._held[target] = self._held[target], []
        for _, row in held:
            self._put(row)

    def _rolled_back(self, session: Session, ended: SessionTransaction) -> None:
        self._held[session] = [
            (savepoint, row) for savepoint, row in self._held[session] if ended.nested and not _is_in(savepoint, ended)
        ]

    def _dropped(self, connection: Connection) -> None:
        self._held[connection] = []


def _is_in(savepoint: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while savepoint is not None and savepoint is not outer:
        savepoint = savepoint.parent
    return savepoint is not None


class _Writer(OutboxWriter):
    def __init__(self, connection: Any, job: str, outbox: RecordedOutbox) -> None:
        super().__init__(connection, job)
        target = connection() if callable(getattr(connection, "registry", None)) else connection
        self._target = getattr(target, "sync_session", None) or getattr(target, "sync_connection", None) or target
        self._outbox = outbox

    async def _insert(self, rows: Sequence[Row]) -> None:
        began = self._connection.execute(text("SELECT 1"))  # the transaction begins, as with INSERT
        if inspect.isawaitable(began):
            await began
        self._outbox.hold(self._target, rows)
