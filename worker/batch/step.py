"""Opens the step of a walk: positions the source at the cursor of the ledger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.batch import unwrap
from worker.batch.key_progress import read_share
from worker.batch.ranges import Parallel, RangedSource, create_ranges
from worker.batch.selection import Selection
from worker.batch.source import Bounds, OpenStep, Page, Source
from worker.cancellation import run_to_completion
from worker.db.sessions import roll_back
from worker.errors import HandEnded, UnsupportedStatement
from worker.ledger import OwnedRun, StepRecord, StepSpec
from worker.ledger.checkpoint import Checkpoints
from worker.ledger.records import RangeRecord
from worker.settings import Settings


async def open_step(
    run: OwnedRun,
    source: Source[Any],
    name: str,
    *,
    settings: Settings,
    is_named: bool,
    count_exactly: bool,
    accepts_change: bool = False,
    parallel: Parallel | None = None,
    size: int = 1,
) -> tuple[StepRecord, Bounds]:
    """Find or create a step in the ledger, and open its source behind the cursor. Return both, with the bounds.

    Args:
        run: The run.
        source: The source, which is not opened for a step that has ended.
        name: The name of the step.
        settings: The worker's settings.
        is_named: Whether the job's author has named the step.
        count_exactly: Whether to count the total.
        accepts_change: Whether the walk continues if its statement, but not its key, has changed.
        parallel: The hands among which the walk is divided, in ranges of at least `size` rows; None for none.

    Raises:
        CursorMismatch: The step in the ledger belongs to another walk.
        FencedOut: Another worker owns the run.
        HandEnded: The run is a helper of another step.
    """
    only, checkpoints = run.spec.only, run.checkpoints
    async with _OwnTransaction(run.connection) as connection:
        if only and only[1] != name:
            return await _end_step(checkpoints, name, source.kind), Bounds()
        spec = StepSpec(name, source.kind, source.fingerprint, None, named=is_named)
        known = _find(run, spec, accepts_change)
        if known is not None and known.done:
            return known, Bounds()
        opened = await _describe_open(run, source, name, known, settings, count_exactly, connection)
        bounds = await source.open(opened)
        if opened.only_keys is not None:
            bounds = replace(bounds, total=len(set(map(json.dumps, opened.only_keys))))
        step = await _find_or_open(checkpoints, replace(spec, key=bounds.key), known, bounds, accepts_change)
        await create_ranges(run, source, step, parallel, size=size, connection=connection)
        return step, bounds


async def reopen_source(run: OwnedRun, source: Source[Any], step: StepRecord, *, settings: Settings) -> None:
    """Close a source, and open it again at the cursor of its step, after a fetch has failed.

    An iterator that has raised an error has ended, and the source would take that for the end of its rows. A source
    that can be divided reads by a key behind the cursor: it stays open.

    Args:
        run: The run.
        source: The source.
        step: The step.
        settings: The worker's settings.
    """
    if isinstance(source, RangedSource):
        return
    await source.close()
    async with _OwnTransaction(run.connection) as connection:
        await source.open(await _describe_open(run, source, step.name, step, settings, False, connection))


async def _describe_open(
    run: OwnedRun,
    source: Source[Any],
    name: str,
    known: StepRecord | None,
    settings: Settings,
    count_exactly: bool,
    connection: AsyncConnection,
) -> OpenStep:
    """Return the step as a source that opens sees it: a known one, or a new one."""
    return OpenStep(
        run_id=run.spec.id,
        name=name,
        cursor=None if known is None else known.cursor,
        last=None if known is None else known.upper_bound,
        is_new=known is None,
        count_exactly=count_exactly,
        only_keys=await run.quarantine.list_retried_keys() if run.spec.only else None,
        connection=connection,
        share=0.0 if known is None else read_share(known.pace or {}),
        skipped=_LedgerSkippedRows(run.checkpoints, name),
        settings=settings,
        selection=await _find_selection(run, source),
    )


async def _find_selection(run: OwnedRun, source: Source[Any]) -> Selection | None:
    """Return the part of the walk that an operator has selected for the run; None for all of it."""
    selected = await run.find_selection()
    if selected is None:
        return None
    if not hasattr(source, "describe"):
        raise UnsupportedStatement(f"{source.kind}: --subset and --from are for loops over tables")
    return Selection(*selected)


async def _find_or_open(
    checkpoints: Checkpoints, spec: StepSpec, known: StepRecord | None, bounds: Bounds, accepts_change: bool
) -> StepRecord:
    """Return the step of a source that is open: a new one, or the known one after a check of its key."""
    if known is None:
        ends = {"upper_bound": bounds.last, "total": bounds.total, "done": bounds.is_empty}
        return await checkpoints.open_step(spec, **ends)
    checkpoints.find_step(spec, accepts_change=accepts_change)
    if known.statement != spec.statement:
        await checkpoints.accept_statement(known, spec.statement)
    if not bounds.is_resumable and known.batches:
        await checkpoints.restart_step(known)
    return known


def _find(run: OwnedRun, spec: StepSpec, accepts_change: bool) -> StepRecord | None:
    """Return the step in the ledger; None if there is none.

    Raises:
        HandEnded: The run is a helper, and the loop is neither finished nor the one that it helps with.
    """
    known = run.checkpoints.find_step(spec, accepts_change=accepts_change)
    hand, name = run.spec.hand, spec.name
    if hand is None:
        return known
    if known is None or known.done == (name == hand.step):
        raise HandEnded(f"the walk {hand.step!r} has ended" if name == hand.step else f"{name!r} is another walk")
    return known


async def _end_step(checkpoints: Checkpoints, name: str, kind: str) -> StepRecord:
    """Return a step that has ended, in a run that processes the quarantined rows of another step."""
    spec = StepSpec(name, kind, "", [], named=True)
    return checkpoints.find_step(spec) or await checkpoints.open_step(spec, upper_bound=None, total=0, done=True)


def describe_place(step: StepRecord, number: int, page: Page[Any]) -> str:
    """Return the place of an open batch, for an error: its step, its number, and its keys."""
    place = f"step {step.name!r}, batch {number}"
    if isinstance(step, RangeRecord):
        place = f"step {step.name!r}, range {step.number}, batch {number}"
    if not page.first_key:
        behind = f", behind key {unwrap(step.cursor)!r}" if step.key and step.cursor else ""
        return place + behind + (f", up to key {unwrap(page.last_key)!r}" if page.last_key else "")
    first, last = unwrap(page.first_key), unwrap(page.last_key)
    return f"{place}, key {first!r}" if first == last else f"{place}, keys {first!r} to {last!r}"


class _OwnTransaction:
    """A transaction on the run's own connection, for the walk's own statements; it ends under cancellation too."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def __aenter__(self) -> AsyncConnection:
        return self._connection

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            await run_to_completion(self._connection.commit())
        else:
            await run_to_completion(roll_back(self._connection.rollback()))


class _LedgerSkippedRows:
    """The rows of one step that other sessions had locked, in the ledger."""

    def __init__(self, checkpoints: Checkpoints, step: str) -> None:
        self._checkpoints = checkpoints
        self._step = step

    async def remember(self, raw: Any, keys: list[list[Any]]) -> None:
        await self._checkpoints.add_skipped(raw, self._step, keys)

    async def list(self, raw: Any, limit: int) -> dict[int, Any]:
        return await self._checkpoints.list_skipped(raw, self._step, limit)

    async def forget(self, raw: Any, ids: Sequence[int]) -> None:
        await self._checkpoints.delete_skipped(raw, list(ids))
