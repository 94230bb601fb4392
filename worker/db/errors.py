"""Classification of errors of PostgreSQL: the server is unavailable, the error is transient, or neither."""

from __future__ import annotations

from asyncpg.exceptions import InterfaceError, PostgresConnectionError
from sqlalchemy.exc import DBAPIError

from worker.errors import iter_causes

#: SQLSTATEs of a server that is away or about to be: the job is not to blame, so the try does not count.
#: 08 connection exceptions; 57P01 to 57P05 shutdown, crash, starting up, dropped, idle; 53300 too many connections.
_AWAY = ("08", "57P", "53300")
#: Of a batch that another moment, or a smaller batch, can cure: serialization failure, deadlock, a lock or a statement
#: that took too long.
_PASSING = frozenset({"40001", "40P01", "55P03", "57014"})


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code of an error, or None."""
    for one in iter_causes(error):
        found = getattr(one, "sqlstate", None)
        if isinstance(found, str):
            return found
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same batch, or half of it, can succeed a moment later."""
    return sqlstate(error) in _PASSING


def is_unavailable(error: BaseException) -> bool:
    """Whether a server, not the job, is to blame."""
    if (sqlstate(error) or "").startswith(_AWAY):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return any(
        isinstance(one, PostgresConnectionError)
        or (isinstance(one, InterfaceError) and "closed" in str(one))
        or (isinstance(one, OSError) and _raised_by_driver(one))
        for one in iter_causes(error)
    )


def _raised_by_driver(error: BaseException) -> bool:
    """Whether an OSError comes from the driver's own socket, and not from one that the job has opened."""
    trace = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith("asyncpg."):
            return True
        trace = trace.tb_next
    return False
