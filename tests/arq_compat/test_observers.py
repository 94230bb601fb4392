"""A worker with arq's functions is observed as any other: logs of runs, spans, and metrics of OpenTelemetry."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from arq import func as arq_func
from arq.connections import ArqRedis
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import StatusCode
from redis.asyncio import Redis

from tests.arq_compat.functions import MakeWorker, add, again, fail, put
from tests.observe.test_tracing import Spans, attributes, ids, links, parent_of, spans, with_tracing
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.observe.metrics import definitions as names
from worker.queue import keys

__all__ = ["spans"]


async def chat(ctx: dict[Any, Any]) -> None:
    """Log, and fail."""
    logging.getLogger("shop").info("half way")
    raise ValueError("not today")


@job
async def walk(ctx: JobContext) -> None:
    """Log as a `@job`."""
    ctx.log.info("walking")


async def test_the_log_of_a_function_is_kept_with_its_run(
    arq: ArqRedis,
    make: MakeWorker,
    settings: Settings,
    database: Database,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    await put(arq, "chat", _job_id="chatty")
    await put(arq, "add", 1, _job_id="brief")
    await make([arq_func(chat, name="chat"), add]).main()
    async with Client(settings) as client:
        lines = await client.run_log("chatty")
    assert [line.logger for line in lines] == ["arq.worker", "shop", "arq.worker"]
    assert lines[1].message == "half way" and {line.attempt for line in lines} == {1}
    assert "ValueError: not today" in str(lines[2].exception)
    assert not await redis.exists(f"{keys.LOG}brief")  # it has nothing but lines of the worker


async def test_without_the_mirror_no_log_is_kept(
    arq: ArqRedis, make: MakeWorker, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await put(arq, "chat", _job_id="chatty")
    await make([arq_func(chat, name="chat")], mirror=False).main()
    assert not await redis.keys("worker:*")


async def test_the_log_of_a_job_is_kept_too(
    arq: ArqRedis, make: MakeWorker, settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with Client(settings) as client:
        await client.enqueue(walk.options(id="w"))
        await make([walk], settings=settings).main()
        assert "walking" in [line.message for line in await client.run_log("w")]


async def test_functions_have_spans_and_links(
    arq: ArqRedis, make: MakeWorker, settings: Settings, redis: Redis, spans: Spans
) -> None:
    settings = with_tracing(settings)
    tracer = trace.get_tracer("shop")
    inside: list[tuple[int, int]] = []

    async def note(ctx: dict[Any, Any]) -> None:
        with tracer.start_as_current_span("inside") as span:
            inside.append((span.get_span_context().trace_id, span.get_span_context().span_id))

    async with Client(settings) as client:
        await client.enqueue_by_name("note", {}, id="n")
    await put(arq, "again", 1, _job_id="twice")
    await put(arq, "fail", _job_id="f")
    await make([arq_func(note, name="note"), again, fail], settings=settings).main()
    [sent], [ran], [inner] = spans.of("enqueue note"), spans.of("run note"), spans.of("inside")
    assert parent_of(ran) == ids(sent) and parent_of(inner) == ids(ran) and inside == [ids(inner)]
    assert (attributes(ran)["longhaul.outcome"], attributes(ran)["messaging.message.id"]) == ("succeeded", "n")
    first, second = spans.of("run again", "twice")
    assert links(second, "former_attempt") == [ids(first)]
    assert [attributes(one)["longhaul.outcome"] for one in (first, second)] == ["retry", "succeeded"]
    [failed] = spans.of("run fail", "f")
    assert (failed.status.status_code, failed.events[0].name) == (StatusCode.ERROR, "exception")


async def test_functions_are_counted_by_opentelemetry(
    arq: ArqRedis, make: MakeWorker, settings: Settings, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", MeterProvider([reader]))
    await put(arq, "add", 1)
    await put(arq, "fail")
    await make([add, fail], settings=with_tracing(settings)).main()
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        (point.attributes["job"], point.attributes["outcome"]): point.value  # type: ignore[index,union-attr]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        if metric.name == names.JOBS.name
        for point in metric.data.data_points
    }
    assert found["add", "succeeded"] == found["fail", "dead"] == 1
