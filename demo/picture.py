"""`make picture`: docs/worker-top.svg, the page of `worker top` while the demo's jobs run on two workers."""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
from pathlib import Path

from demo.data import load, occupied, read_source, transfers, unload
from demo.workers import Workers
from jobs.accounts import transfer_funds
from jobs.places import index_place_names, purge_place_names, retire_hamlets
from worker import Client, Settings, load_settings
from worker.cli.top.app import Page
from worker.embedded import services
from worker.types import Database

PICTURE = Path(__file__).parent.parent / "docs" / "worker-top.svg"
_SIZE = (126, 36)
_QUEUE = "longhaul:demo"
_WALKED_PERCENT = 30
_PATIENCE_SECONDS = 120


async def draw(settings: Settings, workers: Workers) -> str:
    """Run the demo's jobs, and return the page as SVG when the main walk is under way."""
    database = Database(settings, "picture")
    try:
        if await occupied(database):
            raise SystemExit("the database has tables of the demo already: give the picture an empty one")
        try:
            await load(database, read_source())
            return await _watch(settings, workers)
        finally:
            workers.stop()
            await unload(database)
    finally:
        await database.close()


async def _watch(settings: Settings, workers: Workers) -> str:
    async with Client(settings) as client:
        for name in ("north", "south"):
            workers.start(name)
        walk = await client.enqueue(index_place_names.options(id="tonight"), size=500)
        await client.pace("purge-ch", rows_per_second=300)
        await client.enqueue(purge_place_names.options(id="purge-ch"), country_code="CH")
        await client.enqueue(retire_hamlets.options(id="hamlets", delay=3600))
        await client.pause("paused-run")
        await client.enqueue(retire_hamlets.options(id="paused-run"))
        await _transfer(client, 0, 60)
        page = Page(client, settings, every=0.5)
        async with page.run_test(size=_SIZE) as pilot:
            began = time.monotonic()
            async for report in walk.progress(every=0.2):
                if (report.percent or 0) >= _WALKED_PERCENT or report.state in ("succeeded", "dead"):
                    break
                if time.monotonic() - began > _PATIENCE_SECONDS:
                    raise SystemExit(f"the walk is at {report.percent} % after {_PATIENCE_SECONDS} s")
            await _transfer(client, 60, 90)
            await pilot.pause(1.5)
            return page.export_screenshot(title="worker top")


async def _transfer(client: Client, first: int, end: int) -> None:
    for number, values in list(enumerate(transfers(end, seed=1)))[first:]:
        await client.enqueue(transfer_funds.options(id=f"transfer-{number}"), **values)


def without_fonts(svg: str) -> str:
    """Return an SVG that loads no font from elsewhere."""
    svg = re.sub(r"@font-face\s*\{[^}]*\}|<!--.*?-->", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code, monospace", "monospace")


def main() -> int:
    """Write the picture."""
    with services() as running, tempfile.TemporaryDirectory(prefix="longhaul-picture-") as folder:
        environment = running.environment() | {"LONGHAUL_WORKER__QUEUE": _QUEUE}
        svg = asyncio.run(draw(load_settings(environment=environment), Workers(environment, Path(folder))))
    PICTURE.write_text(without_fonts(svg), encoding="utf-8")
    sys.stdout.write(f"{PICTURE.name}: {PICTURE.stat().st_size:,} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
