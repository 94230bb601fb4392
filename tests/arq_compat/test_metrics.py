"""The metrics of a worker that runs arq's functions."""

from __future__ import annotations

import asyncio
import logging
import signal

import pytest
from arq.connections import ArqRedis

from tests.arq_compat.functions import MakeWorker, add, put
from tests.support.scrapes import parse, probe, scrape, served_at, with_metrics
from tests.support.waiting import until
from worker import Settings


async def test_an_arq_worker_serves_metrics_and_needs_no_postgresql(
    arq: ArqRedis, make: MakeWorker, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="longhaul.metrics")
    worker = make([add], settings=with_metrics(settings), burst=False)
    task = asyncio.create_task(worker.main())
    url = await served_at(lambda: caplog.text)
    assert await (await put(arq, "add", 1)).result(timeout=60) == 3

    async def is_counted() -> bool:
        found = parse(await scrape(url))
        return found["longhaul_jobs_total", "add", "succeeded"] == 1 and found.get(("longhaul_server_up", "redis")) == 1

    await until(is_counted)
    assert ("longhaul_server_up", "postgresql") not in parse(await scrape(url))
    assert await probe(url, "readyz") == (200, {"worker": "ok", "redis": "ok"})
    worker.handle_sig(signal.SIGTERM)
    await task
