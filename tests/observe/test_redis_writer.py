"""The pipelines of observers: a key of another type fails alone, and is named as it is in Redis."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from tests.faults.redis_scene import at
from worker import Settings
from worker.observe.redis_writer import RedisWriter
from worker.queue.connection import connection_pool
from worker.queue.outage_log import OutageLog


@pytest.mark.parametrize(("query", "prefix"), [("", ""), ("?namespace=shop", "{shop}:")])
async def test_key_of_another_type_is_named_as_in_redis_and_the_others_are_written(
    settings: Settings, redis: Redis, caplog: pytest.LogCaptureFixture, query: str, prefix: str
) -> None:
    own = Redis.from_pool(connection_pool(at(settings, settings.redis.url + query)))
    writer = RedisWriter(own, OutageLog(), "the test cannot write")
    await redis.set(f"{prefix}worker:run:a", "junk")
    pipeline = own.pipeline(transaction=True)
    for name in "ab":
        pipeline.hset(f"worker:run:{name}", "state", "running")
    assert await writer.execute(pipeline)
    assert await redis.hget(f"{prefix}worker:run:b", "state") == b"running"
    [problem] = [record.getMessage() for record in caplog.records if record.name == "longhaul.keys"]
    assert problem.startswith(f"key problem key={prefix}worker:run:a problem=")
    await own.aclose()


async def test_refused_pipeline_is_an_outage_until_one_is_written(
    settings: Settings, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RedisWriter(redis, OutageLog(), "the test cannot write")
    await redis.config_set("maxmemory", "1")
    try:
        assert not await writer.execute(redis.pipeline().set("a", "1"))
        assert writer.has_failed
    finally:
        await redis.config_set("maxmemory", "0")
    assert await writer.execute(redis.pipeline().set("a", "1"))
    assert not writer.has_failed
    assert "Redis: the test cannot write" in caplog.text
