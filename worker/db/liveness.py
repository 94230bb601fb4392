"""Commands without an answer: a new connection asks the server whether it still works on them.

A half-open connection (a frozen server, a firewall that drops packets) gives no error: a command waits for as long as
TCP likes. A fixed limit for each command would either be too long for such a connection, or end statements that may
take hours, such as CREATE INDEX CONCURRENTLY or a wait for a lock. Therefore the server is asked, by a new connection:
`pg_stat_activity` shows whether the session still works on the command. If it does not, or if the server answers no new
connection either, the connection is terminated, and the command fails with `ConnectionDoesNotExistError`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import asyncpg
from sqlalchemy.util.concurrency import greenlet_spawn

from worker.db.errors import sqlstate
from worker.errors import iter_causes
from worker.settings.sections import DatabaseSettings

logger = logging.getLogger("longhaul.db")

C = TypeVar("C", bound=type[asyncpg.Connection])

_SESSIONS = """
SELECT pid, state, wait_event,
       EXTRACT(epoch FROM pg_catalog.clock_timestamp() - backend_start)::pg_catalog.float8 AS age
  FROM pg_catalog.pg_stat_activity
 WHERE pid = ANY ($1::pg_catalog.int4[])
"""
_TERMINATE = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.unnest($1::pg_catalog.int4[]) AS pid"
#: Largest difference between the ages of a connection and of its session. A process id can be another session's by now.
_SAME_AGE_SECONDS = 5.0
_READ_ONLY = "SELECT pg_catalog.current_setting('transaction_read_only')"
#: Seconds after which a suspicion is checked a second time: an answer may have been on its way.
_CONFIRM_SECONDS = 1.0
#: Longest wait for a new connection and its answer.
_ASK_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0
_TICK_SECONDS = 0.1
#: Longest wait for the server to close a connection.
_CLOSE_SECONDS = 2.0
#: The same after the server has not closed a connection, and for how long that counts.
_FAST_CLOSE_SECONDS, _FAST_CLOSES_SECONDS = 0.05, 10.0
#: 57P: shutdown, crash, starting up; 08: the connection was lost. No session lives on.
_NO_SERVER = ("57P", "08")


class Watched(Protocol):
    """A connection whose commands are checked.

    Attributes:
        pid: process id of the server's session.
        opened: when it was opened, by the loop's clock.
        number: number of commands so far.
        since: when the current command was sent, by the loop's clock; None if there is none.
        is_fed: whether code of the job produces or consumes the rows of the current command.
    """

    pid: int
    opened: float
    number: int
    since: float | None
    is_fed: bool

    def traffic(self) -> tuple[int, int] | None:
        """Return the bytes that the server has acknowledged, and those that it has sent; None if unknown."""

    def end(self, reason: str) -> None:
        """Terminate the connection. The current command fails with the reason."""


@dataclass
class _Silence:
    """A command that has no answer yet.

    Attributes:
        number: number of the command on its connection.
        look_at: when to ask the server, by the loop's clock.
        pause: seconds until the look after the next.
        suspicion: the reason why the connection seems dead; "" if the server works on the command.
        traffic: bytes of the connection at the last look.
    """

    number: int
    look_at: float
    pause: float
    suspicion: str = ""
    traffic: tuple[int, int] | None = None


class LivenessChecker:
    """Ends the connections of one engine whose commands no server works on.

    Args:
        settings: the settings of the database.
        is_pooled: returns whether connections go through PgBouncer, whose sessions cannot be identified.

    Attributes:
        after_seconds: wait for an answer after which the server is asked.
        tcp_seconds: time after which TCP ends a connection whose packets are not acknowledged; 0 for TCP's own.
    """

    def __init__(self, settings: DatabaseSettings, is_pooled: Callable[[], bool]) -> None:
        self.after_seconds = settings.answer_check_seconds
        self._confirm_seconds = min(_CONFIRM_SECONDS, self.after_seconds)
        self.tcp_seconds = settings.tcp_timeout_seconds
        limit = settings.statement_timeout_seconds
        #: Longest wait for an answer where the server cannot tell what a session does.
        self._limit_seconds = limit + self.after_seconds if limit else None
        self._is_pooled = is_pooled
        self._open: Callable[[], Any] | None = None
        self._silent: dict[Watched, _Silence] = {}
        self._task: asyncio.Task[None] | None = None
        self._closes_fast_until = 0.0

    def bind(self, connection_class: C) -> C:
        """Return the class for connections that this checker watches."""
        bound: Any = type(connection_class.__name__, (connection_class,), {"checker": self})
        return bound  # type: ignore[no-any-return]

    def remember(self, dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> None:
        """Remember how connections are opened. This is SQLAlchemy's event `do_connect`."""
        plain = parameters | {
            "connection_class": asyncpg.Connection,
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "server_settings": {"application_name": parameters["server_settings"]["application_name"]},
        }
        self._open = lambda: dialect.connect(*arguments, **plain)

    def add(self, protocol: Watched) -> None:
        """Check the command that this connection sent last, until it has an answer."""
        loop = asyncio.get_running_loop()
        self._silent[protocol] = _Silence(protocol.number, loop.time(), self.after_seconds)
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._check_until_answered(), name="answers of PostgreSQL")

    def close_seconds(self) -> float:
        """Return the longest wait for the server to close a connection; a moment if it has just not closed another."""
        return _CLOSE_SECONDS if time.monotonic() > self._closes_fast_until else _FAST_CLOSE_SECONDS

    def close_timed_out(self) -> None:
        """Record that the server did not close a connection, so that a pool of them does not add up the waits."""
        self._closes_fast_until = time.monotonic() + _FAST_CLOSES_SECONDS

    def close(self) -> None:
        """End the checks."""
        if self._task is not None:
            self._task.cancel()

    async def _check_until_answered(self) -> None:
        loop = asyncio.get_running_loop()
        while self._forget_answered():
            now = loop.time()
            due = [protocol for protocol, silence in self._silent.items() if silence.look_at <= now]
            if due:
                is_answered, sessions = await self._ask([protocol.pid for protocol in due])
                self._forget_answered()
                ended = [protocol for protocol in due if self._judge(protocol, is_answered, sessions)]
                await self._terminate_sessions(ended, sessions or {})
            await asyncio.sleep(_TICK_SECONDS)

    def _forget_answered(self) -> bool:
        """Forget commands that have ended. Return whether there are others."""
        for protocol, silence in list(self._silent.items()):
            if protocol.since is None or protocol.number != silence.number:
                del self._silent[protocol]
        return bool(self._silent)

    async def accepts_writes(self) -> bool:
        """Return whether the server accepts a new connection, and writes on it."""
        if self._open is None:
            return True  # this engine has no connection: the error that led here is of another one
        try:
            async with self._connect() as raw, raw.transaction():
                return bool(await raw.fetchval(_READ_ONLY) == "off")
        except Exception as error:  # noqa: BLE001 - whatever the reason
            logger.debug("no new connection error=%s", error)
            return False

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Any]:
        """Open a connection outside of the pool, for a limited time."""
        assert self._open is not None  # noqa: S101
        raw = None
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                raw = (await greenlet_spawn(self._open)).driver_connection
                yield raw
        finally:
            if raw is not None:
                raw.terminate()

    async def _ask(self, pids: list[int]) -> tuple[bool, dict[int, Any] | None]:
        """Ask the server, by a new connection.

        Returns:
            Whether it answers, and its sessions by process id; None instead of them if they are unknown.
        """
        try:
            async with self._connect() as raw:
                if self._is_pooled():
                    await raw.execute("SELECT 1")
                    return True, None
                return True, {row["pid"]: row for row in await raw.fetch(_SESSIONS, pids)}
        except Exception as error:  # noqa: BLE001 - an error that is not the server's must end no connection
            logger.debug("check of connections failed error=%s", error)
            return _is_answer(error), None

    async def _terminate_sessions(self, ended: list[Watched], sessions: dict[int, Any]) -> None:
        """Terminate the sessions of ended connections: the server does not know, and would keep their locks."""
        now = asyncio.get_running_loop().time()
        pids = []
        for protocol in ended:
            session = sessions.get(protocol.pid)
            if session is not None and abs(session["age"] - (now - protocol.opened)) < _SAME_AGE_SECONDS:
                pids.append(protocol.pid)
        if not pids:
            return
        try:
            async with self._connect() as raw:
                await raw.fetch(_TERMINATE, pids)
        except Exception as error:  # noqa: BLE001 - the server ends them after its own timeouts
            logger.debug("sessions not terminated pids=%s error=%s", pids, error)

    def _judge(self, protocol: Watched, is_answered: bool, sessions: dict[int, Any] | None) -> bool:
        """Decide whether a connection is dead. Return whether it was terminated."""
        silence = self._silent.get(protocol)
        if silence is None:
            return False
        loop = asyncio.get_running_loop()
        traffic, before = protocol.traffic(), silence.traffic
        is_still = traffic is not None and traffic == before
        session = None if sessions is None else sessions.get(protocol.pid)
        suspicion = ""
        if not is_answered:
            suspicion = "the server does not answer new connections either"
        elif sessions is not None and session is None:
            suspicion = "the server has ended its session"
        elif session is None or session["state"] in (None, "disabled"):
            waited = loop.time() - (protocol.since or 0.0)
            if self._limit_seconds is not None and waited > self._limit_seconds:
                suspicion = "it takes longer than database.statement_timeout_seconds"
        elif protocol.is_fed:
            pass  # code of the job produces or consumes the rows of a COPY, and may take its time
        elif session["state"].startswith("idle"):
            suspicion = "the server does not work on it: the command or its answer was lost"
        elif session["wait_event"] in ("ClientRead", "ClientWrite") and is_still:
            suspicion = "the server waits for the network, and no byte comes through"
        if suspicion and silence.suspicion:
            del self._silent[protocol]
            protocol.end(suspicion)
            return True
        silence.suspicion, silence.traffic = suspicion, traffic
        silence.look_at = loop.time() + (self._confirm_seconds if suspicion else silence.pause)
        silence.pause = min(2 * silence.pause, _LONGEST_PAUSE_SECONDS)
        return False


def _is_answer(error: Exception) -> bool:
    """Return whether an error of a new connection proves that the server works, e.g. if it has too many connections."""
    code = sqlstate(error)
    if code is not None:
        return not code.startswith(_NO_SERVER)
    return not any(isinstance(cause, OSError | asyncpg.InterfaceError) for cause in iter_causes(error))
