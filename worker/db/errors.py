"""Classification of errors of PostgreSQL: of the server, of the moment, of a row, or of the job.

It is asked before an error is wrapped, for each way to the server: SQLAlchemy's, asyncpg's own, and that of bulk
operations. https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import enum

import asyncpg
from sqlalchemy.exc import DBAPIError

from worker.errors import iter_causes, read_attribute


class ErrorKind(enum.Enum):
    """The kind of an error: by what an operation can succeed after it."""

    #: The server must come back, or accept our connection, or writes, again. The job is not to blame.
    UNAVAILABLE = "unavailable"
    #: Another moment, or a smaller batch: the same operation can succeed.
    TRANSIENT = "transient"
    #: A row must change: one of its values does not fit, or violates a constraint.
    ROW = "row"
    #: The statement, the job, the schema or the server's disk must change.
    OTHER = "other"


#: 08: connection exceptions; 57P01 to 57P05: shutdown, crash, starting up, database dropped, idle session; 53300: too
#: many connections; 25006: the server accepts no writes, as a standby after a failover; 25P03 and 25P04: the connection
#: was idle in a transaction, or its transaction took, longer than the server allows.
_READ_ONLY = "25006"
_UNAVAILABLE = ("08", "57P", "53300", _READ_ONLY, "25P03", "25P04")
#: Serialization failure, deadlock, and a lock or a statement that took too long. 22P03, and a cached statement that
#: fits no more: a table was altered since the driver has read its types.
_TRANSIENT = frozenset({"40001", "40P01", "55P03", "57014", "22P03"})
#: 22: data exceptions; 23: integrity constraints; 44: WITH CHECK OPTION of a view; 428C9: a value for a column that the
#: server alone writes.
_ROW = ("22", "23", "44", "428C9")
_OUTDATED = (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError)


def classify(error: BaseException) -> ErrorKind:
    """Return what kind of error the database, or the way to it, has raised."""
    if _lost_connection(error):
        return ErrorKind.UNAVAILABLE
    if any(isinstance(cause, _OUTDATED) for cause in iter_causes(error)):
        return ErrorKind.TRANSIENT
    code = sqlstate(error)
    if code is None:
        # An InterfaceError that is no ValueError is a wrong use of the connection, e.g. by two tasks at once.
        client = [cause for cause in iter_causes(error) if isinstance(cause, asyncpg.InterfaceError)]
        return ErrorKind.ROW if any(isinstance(cause, ValueError) for cause in client) else ErrorKind.OTHER
    if code.startswith(_UNAVAILABLE):
        return ErrorKind.UNAVAILABLE
    if code in _TRANSIENT:
        return ErrorKind.TRANSIENT
    return ErrorKind.ROW if code.startswith(_ROW) else ErrorKind.OTHER


def is_unavailable(error: BaseException) -> bool:
    """Return whether the server, or the connection to it, seems to blame, and not the job.

    `worker.runtime.server_probe` confirms it by a new connection, before an attempt is not counted.
    """
    return classify(error) is ErrorKind.UNAVAILABLE


def is_read_only(error: BaseException) -> bool:
    """Return whether the transaction accepts no writes: of a standby, by a setting, or by the job's own command."""
    return sqlstate(error) == _READ_ONLY


def is_transient(error: BaseException) -> bool:
    """Return whether the same batch, or half of it, can succeed a moment later."""
    return classify(error) is ErrorKind.TRANSIENT


def blames_a_row(error: BaseException) -> bool:
    """Return whether a value or a constraint is the reason, so that some row of the statement is to blame."""
    if isinstance(error, AttributeError | LookupError | OverflowError | TypeError | ValueError):
        return True  # a value that its type, or the driver, cannot convert
    return classify(error) is ErrorKind.ROW


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code of an error, or None if it has none."""
    for cause in iter_causes(error):
        found = read_attribute(cause, "sqlstate")
        if isinstance(found, str):
            return found
    return None


def _lost_connection(error: BaseException) -> bool:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return any(
        isinstance(cause, asyncpg.PostgresConnectionError)
        or (isinstance(cause, asyncpg.InterfaceError) and "closed" in str(cause))
        # The server's last message was read, e.g. FATAL 57P01, and the connection is about to close.
        or (isinstance(cause, asyncpg.InternalClientError) and "cannot switch to state" in str(cause))
        or (isinstance(cause, OSError) and _raised_by_driver(cause))
        for cause in iter_causes(error)
    )


def _raised_by_driver(error: BaseException) -> bool:
    """Return whether an OSError is of the driver's own socket, and not of one that the job has opened."""
    trace = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith("asyncpg."):
            return True
        trace = trace.tb_next
    return False
