"""A client in more than one event loop: one after the other, at once, and in a process that was forked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
import redis as blocking
import uvloop
from redis.asyncio import Redis

from tests.queue.sync_jobs import add
from worker import Client, Settings
from worker.errors import UsageError

MakeLoop = Callable[[], asyncio.AbstractEventLoop]


async def use(client: Client, run_id: str) -> str:
    """Use each connection of a client: that of commands, those that listen, and the ledger's."""
    run = await client.enqueue(add.options(id=run_id), 1)
    with pytest.raises(TimeoutError):
        await run.result(timeout=0.01)
    assert await client.recorded_runs() == []
    return f"{run.id} {run.is_new} {await run.status()}"


@pytest.fixture
def queued(settings: Settings) -> Callable[[], list[bytes]]:
    """Return the ids in the queue."""

    def read() -> list[bytes]:
        with blocking.Redis.from_url(settings.redis.url) as server:
            return sorted(server.zrange("arq:queue", 0, -1))  # type: ignore[arg-type]

    return read


@pytest.mark.usefixtures("redis", "database")
@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_client_works_in_one_event_loop_after_the_other(
    settings: Settings, make: MakeLoop, queued: Callable[[], list[bytes]]
) -> None:
    client = Client(settings)
    for run_id in ("a", "b", "c"):
        with asyncio.Runner(loop_factory=make) as runner:
            assert runner.run(use(client, run_id)) == f"{run_id} True waiting"
    asyncio.run(client.close())
    assert queued() == [b"a", b"b", b"c"]


@pytest.mark.usefixtures("database")
async def test_a_client_in_two_event_loops_at_once_is_refused_and_sends_nothing(
    settings: Settings, redis: Redis
) -> None:
    async with Client(settings) as client:
        await use(client, "a")
        for operation in (
            lambda: client.enqueue(add, 2),
            lambda: client.run("a").result(timeout=5),
            lambda: client.recorded_runs(),
            lambda: client.close(),
        ):
            with pytest.raises(UsageError, match=r"in two event loops.*Make a Client in each, or use SyncClient"):
                await asyncio.to_thread(lambda operation=operation: asyncio.run(operation()))  # type: ignore[misc]
        assert await use(client, "b") == "b True waiting"
    assert await redis.zcard("arq:queue") == 2


@pytest.mark.usefixtures("redis", "database")
@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_forked_process_and_its_parent_read_no_answers_of_each_other(
    settings: Settings, make: MakeLoop, queued: Callable[[], list[bytes]]
) -> None:
    client = Client(settings)
    readable, writable = os.pipe()
    with asyncio.Runner(loop_factory=make) as runner:
        assert runner.run(use(client, "before")) == "before True waiting"
        child = os.fork()
        if child == 0:
            try:
                answers = [asyncio.run(use(client, f"child-{n}")) for n in range(2)]
                asyncio.run(client.close())
                os.write(writable, "\n".join(answers).encode())
            finally:
                os._exit(0)
        for n in range(20):
            assert runner.run(use(client, f"parent-{n:02}")) == f"parent-{n:02} True waiting"
        os.waitpid(child, 0)
        runner.run(client.close())
    os.close(writable)
    with os.fdopen(readable) as answer:
        assert answer.read() == "child-0 True waiting\nchild-1 True waiting"
    assert len(queued()) == 23
