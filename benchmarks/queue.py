"""`python -m benchmarks.queue` (`make bench-queue`): compares our queue with its peers, each in its own environment.

Each side has its own worker process and client process, on one Valkey server that is emptied between two runs. The
sides alternate, and figures are medians. A run counts only if every job has run once. QUICK=1 uses fewer jobs, ROWS=1,4
selects rows, PEERS=arq,saq selects peers (PEERS=none: no peers). A partial run writes no file.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator

from benchmarks.queue_metrics import metrics_cost
from benchmarks.queue_rows import Bench, Scale
from benchmarks.report import Report, Row, at_most, refuse_arguments
from benchmarks.sides import OURS, PEERS, Failed, Side, pinned_version
from worker import load_settings
from worker.db.migrate import migrate
from worker.embedded import services
from worker.types import Database

#: The process may write bytecode, so that compilation is not measured.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

#: Prints the seconds of CPU, and the megabytes of memory, that an import takes beyond those of a bare interpreter.
_IMPORT = """
import sys, time
def rss(): return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
before, began = rss(), time.process_time()
from worker import Client
took, grown = time.process_time() - began, rss() - before
print(took, grown, any(name in sys.modules for name in ("sqlalchemy", "asyncpg", "alembic", "arq")))
"""


def import_client(bench: Bench) -> Iterator[Row]:
    """13: measure `from worker import Client` in a fresh interpreter: the minimum of several, with written bytecode."""
    figures = []
    for _ in range(6):
        ran = subprocess.run(
            [sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True, env=_ENVIRONMENT
        )
        seconds, megabytes, heavy = ran.stdout.split()
        if heavy == "True":
            raise Failed("from worker import Client loads SQLAlchemy, asyncpg, Alembic or arq")
        figures.append((float(seconds), float(megabytes)))
    yield at_most("from worker import Client", "s of CPU", min(seconds for seconds, _ in figures), 0.25)
    yield at_most("the same", "MB", min(megabytes for _, megabytes in figures), 30)


ROWS: dict[int, Callable[[Bench], Iterable[Row]]] = {
    1: Bench.empty_100,
    2: Bench.empty_10,
    3: Bench.sleep_100,
    4: Bench.latency,
    5: Bench.one_by_one,
    6: Bench.many,
    7: Bench.round_trips,
    8: Bench.two_processes,
    9: Bench.memory,
    10: Bench.depth,
    11: Bench.idle,
    12: Bench.mirror,
    13: import_client,
    14: metrics_cost,
}


def _measured(bench: Bench, wanted: list[int], say: Callable[[str], None]) -> Iterator[Row]:
    for number in wanted:
        row = ROWS[number]
        try:
            yield from row(bench)
        except Failed as error:
            say(str(error))
            yield Row(str(row.__doc__).strip(), "failed", 0, held=False)


async def _migrate(database_url: str, redis_url: str) -> None:
    settings = load_settings(environment={"DATABASE_URL": database_url, "REDIS_URL": redis_url})
    database = Database(settings, "bench")
    await migrate(database)
    await database.close()


def _chosen(variable: str, all_: Iterable[str]) -> list[str]:
    chosen = [each.strip() for each in os.environ.get(variable, "").split(",") if each.strip()]
    return [each for each in all_ if each in chosen] if chosen else list(all_)


def main() -> int:
    """Run all measurements. Return the exit code."""
    refuse_arguments(__doc__)
    scale = Scale()
    wanted = [int(number) for number in _chosen("ROWS", map(str, ROWS))]
    # Always embedded servers, whatever the environment names, because they are emptied between runs.
    with services(environment={}) as running:
        asyncio.run(_migrate(running.database_url, running.redis_url))
        names = (OURS, *_chosen("PEERS", PEERS))
        sides = {name: Side(name, running.redis_url, running.database_url) for name in names}
        peers = [name for name in sides if name != OURS]
        setting = f"{scale.ours:,} jobs (peers: {scale.peers:,}), medians of {scale.rounds} alternated runs"
        report = Report("queue", setting, peers=peers)
        for row in _measured(Bench(sides, scale, report.say), wanted, report.say):
            report.add([row])
        server = str(sides[OURS].redis.info("server").get("valkey_version"))
        versions = {"valkey": server} | {f"peer {name}": pinned_version(name) for name in peers}
        return report.finish(versions, keep=len(wanted) == len(ROWS) and len(peers) == len(PEERS))


if __name__ == "__main__":
    sys.exit(main())
