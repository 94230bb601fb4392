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
        #: The rows, each with its savepoint: of a session the transaction, of a connection the number; 0 for none.
        self._held: dict[Session | Connection, list[tuple[Any, Row]]] = {}

    def writer(self, session: Any, job: Job[..., Any] | str) -> OutboxWriter:
        """Return a writer for the transaction of a session or a connection of SQLAlchemy, of either kind."""
        return _Writer(session, job.name if isinstance(job, Job) else job, self)

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
        savepoint: Any = target.get_nested_transaction()
        if not isinstance(target, Session):
            savepoint = _number(savepoint and savepoint._savepoint)
        self._held[target] += [(savepoint, row) for row in rows]

    def _listeners(self, target: Session | Connection) -> dict[str, Callable[..., None]]:
        if isinstance(target, Session):
            return {"after_commit": self._committed, "after_soft_rollback": self._rolled_back}
        return {
            "commit": self._committed,
            "rollback": self._dropped,
            "rollback_savepoint": self._rolled_back_savepoint,
        }

    def _committed(self, target: Session | Connection, *_: Any) -> None:
        if isinstance(target, Session) and target.in_nested_transaction():
            return  # a savepoint was released
        held, self._held[target] = self._held[target], []
        for _, row in held:
            self._put(row)

    def _rolled_back(self, session: Session, ended: SessionTransaction) -> None:
        self._held[session] = [
            (savepoint, row) for savepoint, row in self._held[session] if ended.nested and not _is_in(savepoint, ended)
        ]

    def _dropped(self, connection: Connection, *_: Any) -> None:
        self._held[connection] = []

    def _rolled_back_savepoint(self, connection: Connection, name: str, _: Any) -> None:
        # Savepoints within this one have higher numbers, those that have ended before it lower ones.
        ended = _number(name)
        self._held[connection] = [
            (of, row) for of, row in self._held[connection] if not isinstance(of, int) or of < ended
        ]


def _number(savepoint: str | None) -> int:
    """Return the number at the end of the name of a connection's savepoint, by which SQLAlchemy tells them apart."""
    return int((savepoint or "0").rpartition("_")[2])


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
        connection = await self._open_transaction()
        began = connection.execute(text("SELECT 1"))  # the transaction begins, as with INSERT
        if inspect.isawaitable(began):
            await began
        self._outbox.hold(self._target, rows)
