"""The garbage collector stays on during walks, for the other jobs of the process."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import select

from tests.models import Author, Book, authors
from tests.support.contexts import MakeContext
from worker.launch import tune_garbage_collector


@contextmanager
def restored_collector() -> Iterator[None]:
    threshold = gc.get_threshold()
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()


async def test_collector_is_never_disabled_during_a_walk(context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("gc.disable() was called")

    async def watch() -> None:
        while True:
            assert gc.isenabled()
            await asyncio.sleep(0)

    await context().bulk.insert(Author, authors(500))
    monkeypatch.setattr(gc, "disable", refuse)
    watcher = asyncio.create_task(watch())
    ctx = context()
    async for batch in ctx.chunks(select(Author.id), size=100):
        await batch.bulk.insert(Book, [{"author_id": key, "title": "t"} for key in batch] * 3)  # by COPY
    async for _ in ctx.stream(select(Author.id).order_by(Author.id), size=100):
        pass
    assert not watcher.done()
    watcher.cancel()
    await ctx._attempt.succeed()


def test_collector_is_tuned_once_and_stays_enabled() -> None:
    with restored_collector():
        tune_garbage_collector()
        assert gc.isenabled()
        assert gc.get_threshold()[0] >= 10_000
        assert gc.get_freeze_count() > 0
