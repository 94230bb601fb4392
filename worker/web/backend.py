"""The parts that handlers share: a client, the ledger, the jobs and the hub of events, opened when first used.

An application that is mounted in another one is not told when the server starts, so nothing is opened before the first
request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from worker.db.engine import Database
from worker.job.definition import Job
from worker.job.registry import Registry, discover
from worker.ledger import Ledger
from worker.queue.client import Client
from worker.settings import Settings
from worker.web.event_hub import EventHub
from worker.web.event_log import EventLog
from worker.web.monitoring import Monitoring
from worker.web.queue_history import QueueHistory
from worker.web.run_cache import RunCache
from worker.web.shared_reads import SharedReads

logger = logging.getLogger("longhaul.web")

_POOL_SIZE = 4


class Backend:
    """The servers behind the API.

    Args:
        settings: the settings.
        jobs: the jobs; by default those found in `worker.packages`.

    Attributes:
        settings: the settings.
        reads: reads that requests share.
        looks: number of plans and trials that are running.
    """

    def __init__(self, settings: Settings, jobs: Iterable[Job[..., Any]] | None = None) -> None:
        self.settings = settings
        self.reads = SharedReads(settings.web.refresh_seconds)
        self.looks = 0
        self._jobs = None if jobs is None else list(jobs)
        self._loading = asyncio.Lock()
        self._registry: Registry | None = None
        self._has_ended_streams = False

    @cached_property
    def client(self) -> Client:
        """The client of the queue."""
        return Client(self.settings, database=self.database)

    @cached_property
    def database(self) -> Database:
        """The database of the ledger, with a small pool."""
        small = self.settings.database.model_copy(update={"pool_size": _POOL_SIZE, "max_overflow": _POOL_SIZE})
        return Database(self.settings.model_copy(update={"database": small}), "web")

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger."""
        return Ledger(self.database)

    @cached_property
    def history(self) -> QueueHistory:
        """The last hour of the queues, once it was started."""
        return QueueHistory()

    @cached_property
    def event_log(self) -> EventLog:
        """The newest events."""
        return EventLog(self.client)

    @cached_property
    def events(self) -> EventHub:
        """The hub of events."""
        hub = EventHub(self.client, self.settings, self.runs)
        if self._has_ended_streams:
            hub.end()
        return hub

    @cached_property
    def monitoring(self) -> Monitoring:
        """The figures that monitoring systems ask for."""
        return Monitoring(self.settings)

    @cached_property
    def runs(self) -> RunCache:
        """The runs of the overview."""
        return RunCache(self.client)

    async def load_jobs(self) -> Registry:
        """Return the jobs.

        Raises:
            RegistrationError: they cannot be imported.
        """
        async with self._loading:
            if self._registry is None:
                if self._jobs is not None:
                    self._registry = Registry(self._jobs)
                else:  # imports read files, and must not block the event loop
                    self._registry = await asyncio.to_thread(discover, self.settings.worker.packages)
            return self._registry

    def end_streams(self) -> None:
        """End the streams of events, which would keep a server from stopping, and open no more."""
        self._has_ended_streams = True
        if "events" in self.__dict__:
            self.events.end()

    async def close(self) -> None:
        """End the streams of events, and close the connections that were opened."""
        opened = self.__dict__
        if "monitoring" in opened:
            await self.monitoring.close()
        if "history" in opened:
            await self.history.close()
        await self.reads.close()
        if "events" in opened:
            await self.events.close()
        if "client" in opened:
            await self.client.close()
        if "database" in opened:
            await self.database.close()
        for name in ("monitoring", "events", "event_log", "runs", "client", "database", "ledger"):
            opened.pop(name, None)
