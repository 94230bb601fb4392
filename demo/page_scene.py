"""A scene for the page: real workers whose runs walk, were taken over, are throttled, paused and held back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

from demo.data import load, read_source, transfers
from demo.page_jobs import assign_regions, check_time_zones, export_ledger, rebuild_search, retire_villages, sync_prices
from demo.workers import Workers
from jobs.accounts import transfer_funds
from jobs.places import purge_place_names, retire_hamlets
from worker import Client, Settings, load_settings
from worker.cancellation import cancel_and_wait
from worker.embedded import Services, services
from worker.types import Database

_PATIENCE_SECONDS = 120


def scene_environment(running: Services) -> dict[str, str]:
    """Return the environment of the scene's workers and server."""
    return running.environment() | {
        "LONGHAUL_WORKER__PACKAGES": '["jobs", "demo.page_jobs"]',
        "LONGHAUL_WORKER__LEASE_SECONDS": "3",
        "LONGHAUL_WORKER__RESCUE_INTERVAL_SECONDS": "1",
        "LONGHAUL_WORKER__MAX_JOBS": "5",
        "MAINTENANCE_CRON": "15 3 * * *",
    }


@asynccontextmanager
async def scene(settings: Settings, workers: Workers) -> AsyncIterator[None]:
    """Set the scene, and keep it moving in a block."""
    database = Database(settings, "scene")
    workers.start("south")
    async with Client(settings) as client:
        await _wait_for_worker(client)
        await load(database, read_source())
        await client.pace("search-2026-11-27", rows_per_second=900)
        await client.enqueue(rebuild_search.options(id="search-2026-11-27"))
        await _wait_for_rows(client, "search-2026-11-27", 3_000)
        workers.kill("south")
        workers.start("north")
        workers.start("east")
        await _fill(client)
        await _wait_for_rows(client, "search-2026-11-27", 8_000)
        await client.pause("search-2026-11-27")
        await asyncio.sleep(4)
        await client.pace("search-2026-11-27", rows_per_second=420)
        await client.resume("search-2026-11-27")
        moving = asyncio.create_task(_move(client))
        try:
            yield
        finally:
            await cancel_and_wait(moving)
            await database.close()


async def _fill(client: Client) -> None:
    await client.pace("hamlets-eu", rows_per_second=60)
    await client.pace("villages", rows_per_second=260)
    await client.enqueue(check_time_zones.options(id="time-zones-42"), below=3_000_000)
    await client.enqueue(assign_regions.options(id="regions-42"))
    await client.enqueue(retire_villages.options(id="villages"))
    await client.enqueue(retire_hamlets.options(id="hamlets-eu"))
    for month in ("2026-08", "2026-09", "2026-10"):
        await client.enqueue(export_ledger.options(id=f"export-{month}"), month=month)
    await client.pause("purge-ch")
    await client.enqueue(purge_place_names.options(id="purge-ch"), country_code="CH")
    await client.enqueue(retire_hamlets.options(id="hamlets-tonight", delay=9 * 3600))
    for feed in ("nordic", "iberia", "adria"):
        await client.enqueue(sync_prices.options(id=f"prices-{feed}"), feed=feed)


async def _move(client: Client) -> None:
    """Enqueue short runs now and then."""
    for number, values in enumerate(transfers(100_000, seed=int(time.time()))):
        small = values | {"amount": Decimal("0.01")}
        await client.enqueue(transfer_funds.options(id=f"transfer-{int(time.time() * 1000)}"), **small)
        await asyncio.sleep(0.1 + 0.1 * (number % 13) / 6)


async def _wait_for_worker(client: Client) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not (await client.status()).workers:
            await asyncio.sleep(0.1)


async def _wait_for_rows(client: Client, run_id: str, rows: int) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        async for report in client.run(run_id).progress(every=0.2):
            if report.rows >= rows:
                return


async def _keep() -> None:
    """Keep a scene until a signal: its environment is printed, for `worker web` and `make screenshots`."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    with services() as running, tempfile.TemporaryDirectory(prefix="longhaul-scene-") as folder:
        environment = scene_environment(running)
        os.environ.update(environment)
        workers = Workers(environment, Path(folder))
        try:
            async with scene(load_settings(environment=environment), workers):
                for name, value in environment.items():
                    if name.isupper() and name.startswith(("DATABASE", "REDIS", "LONGHAUL", "MAINTENANCE")):
                        sys.stdout.write(f"export {name}='{value}'\n")
                sys.stdout.flush()
                await ended.wait()
        finally:
            workers.stop()


if __name__ == "__main__":
    asyncio.run(_keep())
