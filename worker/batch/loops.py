"""Makes the walk of each loop from its statement and options: source and engine meet here."""

from __future__ import annotations

from typing import Any, TypeVar, Unpack

from sqlalchemy import Delete, Insert, Select, Update

from worker.batch.chunks import ChunksSource
from worker.batch.options import (
    ChunkOptions,
    CountOptions,
    QuarantineOptions,
    SourceOptions,
    StreamOptions,
    SweepOptions,
    WalkOptions,
    check_options,
)
from worker.batch.ranges import Parallel, read_parallel
from worker.batch.skip_locked import SkipLockedSource
from worker.batch.source import Source
from worker.batch.stream import StreamSource
from worker.batch.sweep import SweepSource
from worker.batch.walk import Walk
from worker.batch.walk_host import WalkHost
from worker.errors import UnsupportedStatement

T = TypeVar("T")


def make_chunks(host: WalkHost, statement: Select[Any], **options: Unpack[ChunkOptions]) -> Walk[Any]:
    """Return the walk of `ctx.chunks`."""
    source = make_chunks_source(statement, options)
    return Walk(host, source, parallel=_read_parallel("chunks", options), **_read_common(options))


def make_chunks_source(statement: Select[Any], options: ChunkOptions) -> ChunksSource | SkipLockedSource:
    """Return the source of `ctx.chunks`."""
    check_options("chunks", options, ChunkOptions)
    _read_parallel("chunks", options)  # `worker plan` and `worker try` refuse what a run refuses
    by, lock, allow_sort = options.get("by"), options.get("lock", True), options.get("allow_sort", False)
    unique = options.get("unique", False)
    if unique and (by is None or options.get("skip_locked", False)):
        raise UnsupportedStatement("chunks: unique=True vouches for the key that by= names, without skip_locked=True")
    if not options.get("skip_locked", False):
        return ChunksSource(statement, by=by, lock=lock, allow_sort=allow_sort, vouched=unique)
    if options.get("parallel", 1) != 1:
        raise UnsupportedStatement("chunks: skip_locked=True cannot be combined with parallel=")
    if not lock:
        raise UnsupportedStatement("chunks: skip_locked=True is for a walk that locks its rows; it has lock=False")
    return SkipLockedSource(statement, by=by, allow_sort=allow_sort)


def make_stream(host: WalkHost, statement: Select[Any], **options: Unpack[StreamOptions]) -> Walk[Any]:
    """Return the walk of `ctx.stream`."""
    source = make_stream_source(host, statement, options)
    return Walk(host, source, parallel=_read_parallel("stream", options), **_read_common(options))


def make_stream_source(host: WalkHost, statement: Select[Any], options: StreamOptions) -> StreamSource:
    """Return the source of `ctx.stream`."""
    check_options("stream", options, StreamOptions)
    _read_parallel("stream", options)  # `worker plan` and `worker try` refuse what a run refuses
    return StreamSource(
        statement,
        host.database,
        on_restart=options.get("on_restart"),
        replica=options.get("replica", False),
        max_snapshot_seconds=host.settings.batch.max_snapshot_seconds,
        lock_timeout_seconds=host.settings.database.lock_timeout_seconds,
    )


def make_sweep(host: WalkHost, statement: Update | Delete | Insert, **options: Unpack[SweepOptions]) -> Walk[Any]:
    """Return the walk of `ctx.sweep`."""
    source = make_sweep_source(host, statement, options)
    return Walk(host, source, parallel=_read_parallel("sweep", options), **_read_common(options))


def make_sweep_source(host: WalkHost, statement: Update | Delete | Insert, options: SweepOptions) -> SweepSource:
    """Return the source of `ctx.sweep`."""
    check_options("sweep", options, SweepOptions)
    _read_parallel("sweep", options)  # `worker plan` and `worker try` refuse what a run refuses
    by, allow_sort = options.get("by"), options.get("allow_sort", False)
    return SweepSource(statement, host.database.engine, by=by, allow_sort=allow_sort)


def make_walk(host: WalkHost, source: Source[T], **options: Unpack[SourceOptions]) -> Walk[T]:
    """Return the walk of `ctx.walk`."""
    check_options("walk", options, SourceOptions)
    return Walk(host, source, **_read_common(options))


def _read_parallel(kind: str, options: ChunkOptions | StreamOptions | SweepOptions) -> Parallel | None:
    return read_parallel(kind, options.get("parallel"), options.get("on_hand_error", "stop"))


def _read_common(options: WalkOptions | CountOptions | QuarantineOptions) -> dict[str, Any]:
    """Return the options that belong to the engine."""
    given: dict[str, Any] = dict(options)
    return {
        "size": given.get("size"),
        "name": given.get("name"),
        "count_exactly": given.get("count") == "exact",
        "on_error": given.get("on_error", "raise"),
        "quarantine_limit": given.get("quarantine_limit", 0),
    }
