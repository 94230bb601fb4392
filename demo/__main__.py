"""`python -m demo`; see the package's docstring."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.check import Counts, check
from demo.data import Source, load, occupied, read_source, transfers, unload
from demo.ledger import recorded, rows_of_hands
from demo.show import Bar, bar, console, print_hands, print_jobs, print_plan
from demo.workers import Workers
from jobs.accounts import transfer_funds
from jobs.places import index_place_names, purge_place_names, retire_hamlets, summarise_countries
from worker import Client, JobFailed, Run, Settings, load_settings
from worker.embedded import services
from worker.plan import make_plan
from worker.types import Database

KILL_AT_PERCENT = 40
LONGEST_TAKEOVER_SECONDS = 15
RETIRED_BELOW = 1_000
PURGED = "CH"
TRANSFERS = 300
_QUEUE = "longhaul:demo"
_NAMES = ("north", "south")
_SUCCESSOR = "east"

_TRY = """Try it on permanent servers (`make services` prints their URLs; set them, and run `make worker`):
  redis-cli -u $REDIS_URL HGETALL worker:run:<id>              how far a run is
  redis-cli -u $REDIS_URL HGETALL worker:workers               who works
  redis-cli -u $REDIS_URL ZRANGE arq:queue 0 -1 WITHSCORES     what waits
  redis-cli -u $REDIS_URL SADD worker:paused index_place_names     pause (SREM resumes)
  redis-cli -u $REDIS_URL SET arq:job:mine '{"f": "retire_hamlets"}'  enqueue, in two commands:
  redis-cli -u $REDIS_URL ZADD arq:queue 0 mine
  worker run --metrics-port 9464                                 then: curl http://127.0.0.1:9464/metrics
  worker web                                                     then: curl http://127.0.0.1:8080/overview"""


async def demo(settings: Settings, workers: Workers, logs: Path) -> Counts:
    """Load, run, kill, and count."""
    database = Database(settings, "demo")
    began = time.monotonic()
    try:
        await database.check()
        taken = await occupied(database)
        if taken:
            raise SystemExit(f"the database has tables {', '.join(taken)} already: give the demo an empty one")
        try:
            source = read_source()
            await load(database, source)
            console.print(
                f"{len(source.places):,} places with {source.names:,} alternate names loaded by COPY, "
                f"{time.monotonic() - began:.1f} s after the start"
            )
            return await _run_jobs(settings, database, workers, source)
        finally:
            workers.stop()
            await unload(database)
    finally:
        await database.close()


async def _run_jobs(settings: Settings, database: Database, workers: Workers, source: Source) -> Counts:
    async with Client(settings) as client:
        await _start(client, workers, _NAMES)
        run = await client.enqueue(index_place_names)
        with bar("index_place_names") as shown:
            seconds = await _kill_in_the_middle(client, database, run, shown)
        await _start(client, workers, (_SUCCESSOR,))
        retired = await client.enqueue(retire_hamlets, below=RETIRED_BELOW)
        await retired.result(timeout=60)
        print_plan(await make_plan(purge_place_names, settings, country_code=PURGED))
        done = [run.id, retired.id]
        for other in (
            await client.enqueue(summarise_countries),
            await client.enqueue(purge_place_names, country_code=PURGED),
        ):
            await other.result(timeout=60)
            done.append(other.id)
        moved = await _transfer(client)
    console.print()
    print_jobs(await recorded(database, done))
    print_hands(retire_hamlets.name, await rows_of_hands(database, retired.id))
    console.print(f"transfer_funds: {moved} of {TRANSFERS} transfers made, the others refused as overdrafts")
    console.print(f"takeover: {seconds:.1f} s from the death to the next committed batch")
    console.print()
    console.print(_TRY, soft_wrap=True)
    console.print()
    counts = await check(database, source, purged=PURGED, retired_below=RETIRED_BELOW)
    counts.add_wrong(int(seconds > LONGEST_TAKEOVER_SECONDS), f"takeover: over {LONGEST_TAKEOVER_SECONDS} s")
    return counts


async def _start(client: Client, workers: Workers, names: Sequence[str]) -> None:
    """Start workers, and wait until they are there."""
    for name in names:
        workers.start(name)
    async with asyncio.timeout(30):
        while not set(names) <= {found.split(":")[0] for found in await _workers(client)}:
            for name in set(names) & set(workers.ended()):
                raise SystemExit(f"worker {name} did not start:\n{workers.log(name)}")
            await asyncio.sleep(0.05)


async def _workers(client: Client) -> dict[str, Any]:
    """Return the entries of the workers, as an operator reads them: HGETALL worker:workers."""
    found = await client.command(client.redis.hgetall("worker:workers"))
    known = {name.decode(): json.loads(text) for name, text in found.items()}
    return {name: worker for name, worker in known.items() if worker["queue"] == _QUEUE}


async def _kill_in_the_middle(client: Client, database: Database, run: Run[int], shown: Bar) -> float:
    """Follow the run, and kill its worker once. Return the seconds until the next committed batch."""
    killed_at = seconds = 0.0
    rows_then = 0
    async for report in run.progress(every=0.1):
        shown.show(report)
        if not killed_at and report.worker and (report.percent or 0) >= KILL_AT_PERCENT:
            pid = (await _workers(client))[report.worker]["pid"]
            os.kill(pid, signal.SIGKILL)
            killed_at, rows_then = time.monotonic(), (await _committed(database, run))
            shown.note(f"  SIGKILL to worker {report.worker} (pid {pid}) at {report.percent:.0f} %")
            shown.note("  the other one takes over when the lease of the dead one has run out ...")
        elif killed_at and not seconds and await _committed(database, run) > rows_then:
            seconds = time.monotonic() - killed_at
            shown.note(f"  taken over: the next batch was committed {seconds:.1f} s after the death")
    await run.result(timeout=5)
    if not seconds:
        raise SystemExit("the run ended before its worker could be killed")
    return seconds


async def _committed(database: Database, run: Run[int]) -> int:
    return sum(found.rows for found in await recorded(database, [run.id]))


async def _transfer(client: Client) -> int:
    """Transfer money, with many transfers at the same time. Return the number of transfers made."""
    made = [await client.enqueue(transfer_funds, **values) for values in transfers(TRANSFERS, seed=1)]
    moved = 0
    for run in made:
        try:
            await run.result(timeout=60)
            moved += 1
        except JobFailed:
            pass
    return moved


def main() -> int:
    """Run the demo. Return the exit code: 0 if nothing is doubled, missing or wrong."""
    began = time.monotonic()
    with services() as running, tempfile.TemporaryDirectory(prefix="longhaul-demo-") as folder:
        where = "PostgreSQL and Valkey of its own" if running.postgres else "the servers of DATABASE_URL and REDIS_URL"
        console.print(f"Longhaul's demo on {where}")
        environment = running.environment() | {"LONGHAUL_WORKER__QUEUE": _QUEUE}
        settings = load_settings(environment=environment)
        workers = Workers(environment, Path(folder))
        try:
            counts = asyncio.run(demo(settings, workers, Path(folder)))
        finally:
            workers.stop()
    for note in counts.notes:
        console.print(note)
    console.print(f"the whole demo took {time.monotonic() - began:.0f} s")
    console.print(str(counts))
    return 0 if counts.clean else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
