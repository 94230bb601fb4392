"""The sessions of frozen workers, which keep their locks until another worker ends them.

`idle_in_transaction_session_timeout` ends a transaction whose client sends no further command. It does not end the
transaction of a client that stops between two messages of one command: asyncpg prepares a statement by messages of its
own, and COPY reads many. Such a session is active, and waits for its client. `statement_timeout` does not end it
either: PostgreSQL ignores it while it waits for a message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation import cancel_and_wait, run_to_completion
from worker.db.engine import Database
from worker.ledger.queries import query
from worker.ledger.run_connection import end_session, terminate_backend

logger = logging.getLogger("longhaul.ledger")

#: Pause between two looks for sessions that a claim waits for.
_LOOK_SECONDS = 0.5

_Stalled = tuple[int, datetime, datetime, int]


class FrozenSessions:
    """Ends the sessions of workers that have stopped in the middle of a command, as the idle timeout would.

    A session counts from the moment at which this process finds it. So a slow look, or the clock of a server, never
    ends a session that continues.

    Args:
        database: Where the sessions are.
        seconds: Time without progress after which a session is ended.
        now: Returns a time in seconds that only grows.
    """

    def __init__(self, database: Database, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._seconds = seconds
        self._now = now
        self._found_at: dict[_Stalled, float] = {}

    async def look(self) -> int:
        """Look at all sessions of workers. Return the number of those that were ended."""
        async with self._database.connection() as connection:
            rows = (await connection.execute(query("list_stalled_sessions"))).all()
            now = self._now()
            names: dict[_Stalled, str] = {
                (row.pid, row.backend_start, row.query_start, row.bytes): row.application_name for row in rows
            }
            self._found_at = {each: self._found_at.get(each, now) for each in names}
            due = [each for each, found_at in self._found_at.items() if now - found_at >= self._seconds]
            ended = 0
            for each in due:
                pid, started = each[:2]
                if await end_session(connection, pid, started):
                    ended += 1
                    logger.warning("terminated a session that its worker left session=%s pid=%s", names[each], pid)
                del self._found_at[each]
        return ended


@asynccontextmanager
async def terminating_blockers(database: Database, run_id: str, pid: int, seconds: float) -> AsyncIterator[None]:
    """Terminate the frozen sessions that a session waits for.

    A worker that froze within its claim has not recorded its session yet, so that no successor can find it in the
    ledger.

    Args:
        database: Where the sessions are.
        run_id: Id of the run that is claimed, for the log.
        pid: Process id of the session that waits.
        seconds: Time without a message of its client after which a session counts as frozen.
    """

    async def look() -> None:
        values = {"pid": pid, "seconds": seconds}
        while True:
            with suppress(SQLAlchemyError, OSError):  # the next look may succeed
                async with database.connection() as connection:
                    for row in (await connection.execute(query("find_frozen_blockers"), values)).all():
                        await terminate_backend(connection, run_id, row.pid, row.backend_start)
            await asyncio.sleep(_LOOK_SECONDS)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        await run_to_completion(cancel_and_wait(task))
