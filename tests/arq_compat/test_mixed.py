"""One queue that stock arq workers and ours process at the same time; other versions of arq's client; the command."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from redis.asyncio import Redis

from tests.support.waiting import until
from worker import Settings

ROOT = Path(__file__).parents[2]

PROJECT = '''
"""A project with arq's jobs; each notes in Redis that it ran, and in whose process."""
import asyncio, os
from arq import Retry, cron
from arq.connections import RedisSettings

async def touch(ctx, number):
    await ctx["redis"].rpush("ran", f"{number} {os.environ['WHO']}")
    await asyncio.sleep(0.01)
    return number

async def slow(ctx, number):
    await asyncio.sleep(0.3)
    await ctx["redis"].rpush("ran", f"{number} {os.environ['WHO']}")

async def endless(ctx, number):
    await asyncio.Event().wait()

async def twice(ctx, number):
    await ctx["redis"].rpush("tries", f"{number} {ctx['job_try']}")
    if ctx["job_try"] == 1:
        raise Retry(defer=0.05)
    await ctx["redis"].rpush("ran", f"{number} {os.environ['WHO']}")

async def tick(ctx):
    await ctx["redis"].rpush("ticks", f"{ctx['job_id']} {os.environ['WHO']}")

class WorkerSettings:
    functions = [touch, slow, endless, twice]
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
    cron_jobs = [cron(tick, second=set(range(60)))]
    poll_delay = 0.05
    keep_result = 600
'''


class Project:
    """An arq project in a folder, and its worker processes."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self._folder = folder
        self._redis_url = redis_url
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "project.py").write_text(PROJECT)

    def start(self, who: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process in the project's folder."""
        log = (self._folder / f"{who}.log").open("wb")
        environment = os.environ | {
            "WHO": who,
            "REDIS_URL": self._redis_url,
            "PYTHONPATH": str(ROOT),
            "LONGHAUL_WORKER__LEASE_SECONDS": "0.9",
        }
        for name in ("DATABASE_URL", "LONGHAUL_DATABASE__URL"):
            environment.pop(name, None)
        self.processes[who] = subprocess.Popen(
            [sys.executable, *command], cwd=self._folder, env=environment, stdout=log, stderr=log
        )
        return self.processes[who]

    def stock(self, who: str, *options: str) -> subprocess.Popen[bytes]:
        """Start arq's own worker."""
        return self.start(who, "-m", "arq", "project.WorkerSettings", *options)

    def ours(self, who: str, *options: str) -> subprocess.Popen[bytes]:
        """Start our worker with the same class."""
        return self.start(who, "-m", "worker", "run", "--arq", "project.WorkerSettings", "--name", who, *options)

    async def ended(self, who: str) -> int:
        """Wait until a process has ended. Return its exit code."""
        process = self.processes[who]

        async def look() -> bool:
            return process.poll() is not None

        await until(look)
        return process.returncode

    def log(self, who: str) -> str:
        """Return the output of a process."""
        return (self._folder / f"{who}.log").read_text()

    def stop(self) -> None:
        """End all processes."""
        for who, process in self.processes.items():
            process.kill()
            process.wait()
            sys.stdout.write(f"--- {who}\n{self.log(who)[-3000:]}\n")


@pytest.fixture
def project(tmp_path: Path, settings: Settings, redis: Redis) -> Iterator[Project]:
    """Prepare, without a worker."""
    made = Project(tmp_path, settings.redis.url)
    yield made
    made.stop()


@pytest_asyncio.fixture
async def arq(settings: Settings, redis: Redis) -> AsyncIterator[ArqRedis]:
    """The stock client."""
    pool = await create_pool(RedisSettings.from_dsn(settings.redis.url))
    yield pool
    await pool.aclose(close_connection_pool=True)


async def noted(redis: Redis, key: str = "ran") -> list[tuple[str, str]]:
    """Return the recorded pairs of number and process."""
    pairs: list[Any] = [raw.decode().split(" ") for raw in await redis.lrange(key, 0, -1)]
    return [(first, second) for first, second in pairs]


async def test_both_work_one_queue_off_and_each_job_runs_once(project: Project, arq: ArqRedis, redis: Redis) -> None:
    project.stock("stock")
    project.ours("ours", "--max-jobs", "2")  # with more it leaves the stock worker next to nothing
    await until(lambda: redis.hexists("worker:workers", "ours"))
    await until(lambda: redis.exists("arq:queue:health-check"))
    sent = []
    for number in range(600):
        name = "twice" if number % 10 == 0 else "touch"
        sent.append(await arq.enqueue_job(name, number))

    async def done() -> bool:
        return int(await redis.llen("ran")) >= 600

    await until(done)
    ran = await noted(redis)
    assert Counter(number for number, _ in ran) == Counter(str(number) for number in range(600))
    share = Counter(who for _, who in ran)
    assert min(share["stock"], share["ours"]) > 20, share
    assert Counter(await noted(redis, "tries")) == Counter(
        (str(number), str(attempt)) for number in range(0, 600, 10) for attempt in (1, 2)
    )
    results = [await one.result(timeout=120, poll_delay=0.02) for one in sent if one is not None]
    assert [value for value in results if value is not None] == [n for n in range(600) if n % 10]
    for who in ("stock", "ours"):
        project.processes[who].send_signal(signal.SIGTERM)
    assert await project.ended("ours") == 0


@pytest.mark.long
async def test_both_fire_each_due_time_of_a_cron_job_once(project: Project, redis: Redis) -> None:
    project.stock("stock1")
    project.ours("ours1")
    project.ours("ours2")

    async def enough() -> bool:
        return int(await redis.llen("ticks")) >= 8

    await until(enough)
    ids = [job_id for job_id, _ in await noted(redis, "ticks")]
    assert len(ids) == len(set(ids))


async def test_jobs_of_a_killed_worker_of_ours_are_the_stock_workers(
    project: Project, arq: ArqRedis, redis: Redis
) -> None:
    ours = project.ours("ours")
    await until(lambda: redis.hexists("worker:workers", "ours"))
    for number in range(200):
        await arq.enqueue_job("slow" if number < 20 else "touch", number)

    async def begun() -> bool:
        return len(await redis.keys("arq:in-progress:*")) >= 10

    await until(begun)
    project.stock("stock")
    ours.kill()
    ours.wait()

    async def empty() -> bool:
        return not [key for key in await arq.keys("arq:job:*") if b"tick" not in key]

    await until(empty)
    ran = Counter(number for number, _ in await noted(redis))
    assert set(ran) == {str(number) for number in range(200)}
    # Killed between its note and its end, a job runs again: at least once, as arq promises. Those that had not noted
    # anything, which are the slow ones, ran once.
    assert sum(ran.values()) - len(ran) <= 10


async def test_the_command_says_in_one_line_what_it_cannot_find(project: Project) -> None:
    project.start("wrong", "-m", "worker", "run", "--arq", "project.Nothing")
    assert await project.ended("wrong") == 2
    assert project.log("wrong").strip() == (
        'worker: --arq project.Nothing: Module "project" does not define a "Nothing" attribute'
    )


async def test_the_command_runs_a_burst_of_another_queue(project: Project, arq: ArqRedis, redis: Redis) -> None:
    sent = await arq.enqueue_job("touch", 7, _queue_name="other")
    assert sent is not None
    project.ours("ours", "--burst", "--queue", "other", "--max-jobs", "1")
    assert await project.ended("ours") == 0
    assert await sent.result(timeout=120) == 7


CLIENT = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import arq
from arq.connections import RedisSettings, create_pool
from arq.jobs import JobStatus
assert arq.__file__.startswith(sys.argv[1]), arq.__file__

async def main():
    pool = await create_pool(RedisSettings.from_dsn(sys.argv[2]))
    job = await pool.enqueue_job("touch", 3, _job_id="first")
    assert await pool.enqueue_job("touch", 3, _job_id="first") is None
    assert await job.result(timeout=120, poll_delay=0.02) == 3
    assert await job.status() is JobStatus.complete
    assert (await job.info()).success
    # arq's abort() makes a deferred job due before it asks for the end: a job that ends by itself might win that race.
    later = await pool.enqueue_job("endless", 4, _defer_by=60)
    assert await later.status() is JobStatus.deferred
    assert (await later.info()).args == (4,)
    assert await later.abort(timeout=10, poll_delay=0.02)
    print("done")

asyncio.run(main())
"""


@pytest.mark.parametrize("version", ["0.26.3", "0.27.0"])
async def test_older_clients(project: Project, redis: Redis, settings: Settings, tmp_path: Path, version: str) -> None:
    client = tmp_path / "client"
    # An environment that uv has made has no pip.
    installer = [sys.executable, "-m", "pip"] if find_spec("pip") else ["uv", "pip"]
    got = await asyncio.to_thread(
        subprocess.run,
        [*installer, "install", "-q", "--no-deps", "--target", str(client), f"arq=={version}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if got.returncode:
        pytest.skip(f"arq {version} cannot be had here")
    text = (tmp_path / "project.py").read_text() + "    allow_abort_jobs = True\n"
    (tmp_path / "project.py").write_text(text)
    project.ours("ours")
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CLIENT, str(client), settings.redis.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == "done\n", ran.stderr
    project.start("check", "-m", "arq", "--check", "project.WorkerSettings")
    assert await project.ended("check") == 0  # arq's own command reports our worker as alive
