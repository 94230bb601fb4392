"""Connections to Redis that end at any moment: each error is a `RedisError`, on both event loops."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.support.proxy import proxied
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, ServerUnavailable, Settings, job
from worker.queue import keys
from worker.queue.connection import DedicatedConnection, connection_pool
from worker.settings import parse_redis_url

pytestmark = pytest.mark.usefixtures("database")

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def at_port(settings: Settings, port: int) -> Settings:
    """Return the settings with another port of Redis."""
    url = f"redis://127.0.0.1:{port}/0"
    return settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": url})})


def redis_port(settings: Settings) -> int:
    """Return the port of the test's Redis."""
    place = parse_redis_url(settings.redis.url)
    return int(place.url.rpartition(":")[2].partition("/")[0])


async def errors_under_resets(settings: Settings, seconds: float) -> Counter[str]:
    """Send commands on pooled and dedicated connections while all connections are reset. Return the errors."""
    found: Counter[str] = Counter()
    chance = random.Random(11)
    async with proxied(redis_port(settings)) as proxy:
        here = at_port(settings, proxy.port)
        client, lane = Redis(connection_pool=connection_pool(here)), DedicatedConnection(here)
        deadline = asyncio.get_running_loop().time() + seconds

        async def send(command: Callable[[], Any]) -> None:
            while asyncio.get_running_loop().time() < deadline:
                try:
                    await command()
                except Exception as error:
                    found["RedisError" if isinstance(error, RedisError) else repr(error)] += 1
                    await asyncio.sleep(0)

        async def reset() -> None:
            while asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(chance.uniform(0, 0.01))
                proxy.reset() if chance.random() < 0.7 else proxy.cut()

        text = "x" * 100_000  # more than a socket takes at once: resets come in the middle of a send, too
        senders = [send(lambda: client.set("test:key", text)) for _ in range(3)]
        senders += [send(lambda: client.get("test:key")), send(lambda: lane.send("GET", "test:key"))]
        await asyncio.gather(reset(), *senders)
        await lane.close()
        await client.aclose(close_connection_pool=True)
    return found


@pytest.mark.parametrize("loop", LOOPS)
def test_connection_raises_nothing_but_redis_errors_under_resets(settings: Settings, loop: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        found = runner.run(errors_under_resets(settings, 3.0))
    assert set(found) == {"RedisError"}


@pytest.mark.long
@pytest.mark.parametrize("loop", LOOPS)
def test_connection_raises_nothing_but_redis_errors_under_many_resets(settings: Settings, loop: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        found = runner.run(errors_under_resets(settings, 60.0))
    assert set(found) == {"RedisError"}


@job
async def brief(ctx: JobContext) -> str:
    """End at once."""
    return "done"


@job
async def endless(ctx: JobContext) -> None:
    """Run until it is cancelled."""
    await asyncio.Event().wait()


async def results_under_resets(settings: Settings, rounds: int) -> Counter[str]:
    """Wait for results while connections are killed. Return the end of each wait."""
    found: Counter[str] = Counter()
    async with proxied(redis_port(settings)) as proxy, Client(at_port(settings, proxy.port)) as client:
        for number in range(rounds):
            try:
                run = await client.enqueue(brief.options(delay=0.2))
                waiting = asyncio.create_task(run.result(timeout=120))
                await asyncio.sleep(0.05)
                proxy.reset()
                found[await waiting] += 1
            except ServerUnavailable:
                found["unavailable"] += 1
            except Exception as error:
                found[f"{number}: {error!r}"] += 1
    return found


@pytest.mark.parametrize("loop", LOOPS)
async def test_result_is_there_or_redis_unavailable_under_resets(fast: Settings, redis: Redis, loop: str) -> None:
    found: list[Counter[str]] = []

    def wait_for_results() -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            found.append(runner.run(results_under_resets(fast, 10)))

    async with working(fast, brief):
        thread = threading.Thread(target=wait_for_results)
        thread.start()
        await asyncio.to_thread(thread.join)
    assert set(found[0]) <= {"done", "unavailable"}
    assert found[0]["done"] > 0


async def test_worker_obeys_orders_after_its_connections_were_reset(
    fast: Settings, redis: Redis, client: Client
) -> None:
    async with proxied(redis_port(fast)) as proxy:
        here = with_worker(at_port(fast, proxy.port), name="north", max_jobs=1)
        async with working(here, endless, brief) as worker:
            run = await client.enqueue(endless)
            await until(lambda: _status_is(run, "running"))
            for number in range(8):
                await redis.sadd(keys.PAUSED, f"nobody-{number}")  # the listener reads now
                proxy.reset()
                await redis.client_kill_filter(_type="pubsub")
                await redis.sadd(keys.RETRIED, f"nobody-{number}")  # the worker removes this command itself
                await until(lambda: _has_no_member(redis, keys.RETRIED))
            await run.cancel()
            await until(lambda: _status_is(run, "cancelled"))
            assert await (await client.enqueue(brief)).result(timeout=120) == "done"
            await redis.sadd(keys.DRAINED, "north")
            await until(lambda: _is(lambda: worker.is_draining))


async def _status_is(run: Any, state: str) -> bool:
    return bool(await run.status() == state)


async def _has_no_member(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def _is(look: Callable[[], bool]) -> bool:
    return look()
