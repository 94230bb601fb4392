"""Jobs that are traced, and the function that sets up OpenTelemetry in a worker's process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from sqlalchemy import select

from tests.models import Author
from worker import JobContext, Retry, job, traceparent

FILE = "TRACED_FILE"


def set_up() -> None:
    """Append each span to a file, one JSON object a line."""
    file = Path(os.environ[FILE]).open("a", encoding="utf-8")  # noqa: SIM115 - as long as the process
    exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


@job
async def walk(ctx: JobContext) -> int:
    """Walk in three batches."""
    async for _ in ctx.chunks(select(Author.id), size=10, name="authors"):
        pass
    return ctx.rows_done


#: The runs of `observed` that have failed once.
FAILED: set[str] = set()


@job(max_attempts=3)
async def observed(ctx: JobContext, way: str) -> None:
    """Make spans in the bodies of three batches, and after the loop."""
    tracer = trace.get_tracer("shop")
    async for batch in ctx.chunks(select(Author.id), size=10, name="authors"):
        with tracer.start_as_current_span(f"in {batch.number}"):
            await asyncio.sleep(0)
        if batch.number == 2 and way == "break":
            break
        if batch.number == 2 and way == "fail" and ctx.run_id not in FAILED:
            FAILED.add(ctx.run_id)
            raise ValueError("the second batch")
    with tracer.start_as_current_span("after"):
        pass


@job
async def together(ctx: JobContext) -> None:
    """Walk with two hands."""
    async for _ in ctx.chunks(select(Author.id), size=5, parallel=2, name="authors"):
        await asyncio.sleep(0.01)


@job
async def follow(ctx: JobContext) -> str:
    """Make a span of its own, and return the trace."""
    with trace.get_tracer("shop").start_as_current_span("own"):
        return traceparent.get()


@job(max_attempts=3)
async def stumble(ctx: JobContext, times: int) -> None:
    """Fail some times."""
    if ctx.attempt <= times:
        raise ValueError(f"stumbled {ctx.attempt}")
    if ctx.attempt == times + 1 and times == 1:
        raise Retry(after=0.01)


@job
async def crawl(ctx: JobContext) -> int:
    """Walk, and stop in the second batch until the worker is killed."""
    async for batch in ctx.chunks(select(Author.id), size=10, name="authors"):
        if batch.number == 2 and not ctx.rows_done > 10 and "CRAWL_WAITS" in os.environ:
            await asyncio.sleep(600)
    return ctx.rows_done
