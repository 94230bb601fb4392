"""Several processes behind one port: each sends its snapshots to the supervisor, which adds them up.

A process sends a line of JSON at an interval, and a last one when it ends, over a Unix socket in a directory that only
this user may enter. When a connection ends, its counts are kept: a counter does not go backwards when a process dies. A
process that was killed has sent its counts up to `INTERVAL_SECONDS` before.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from worker.observe.metrics.health import Health, check_liveness, check_readiness
from worker.observe.metrics.servers import Servers
from worker.observe.metrics.snapshot import Snapshot, dump
from worker.runtime.worker import Worker

logger = logging.getLogger("longhaul.metrics")

INTERVAL_SECONDS = 1.0
MOST_BYTES = 16_000_000
_SEND_SECONDS = 5.0
_CLOSE_SECONDS = 1.0


class Reporter:
    """Sends the snapshots and the health of one process to its supervisor.

    Args:
        path: the socket of the supervisor.
        snapshot: returns the values.
        worker: the worker.
        servers: checks the servers.
    """

    def __init__(self, path: str, snapshot: Callable[[], Snapshot], worker: Worker, servers: Servers) -> None:
        self._path = path
        self._snapshot = snapshot
        self._worker = worker
        self._servers = servers
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            with suppress(OSError, TimeoutError):  # the supervisor is busy, or ends
                await self._send(await check_readiness(self._worker, self._servers))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def close(self) -> None:
        """Send the last values."""
        with suppress(OSError, TimeoutError):
            await self._send(Health(False, {"worker": "stopped"}))
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._writer.wait_closed()

    async def _send(self, readiness: Health) -> None:
        async with asyncio.timeout(_SEND_SECONDS):
            if self._writer is None or self._writer.is_closing():
                _, self._writer = await asyncio.open_unix_connection(self._path)
            health = {"live": asdict(check_liveness(self._worker)), "ready": asdict(readiness)}
            self._writer.write(f'{{"health": {json.dumps(health)}, "values": {dump(self._snapshot())}}}\n'.encode())
            await self._writer.drain()
