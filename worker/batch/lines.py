"""`ctx.lines`: a text file by partitions of lines, gone on with behind the last committed one.

The cursor is how many bytes are done, and the SHA-256 of those: a file that was cut off or changed there since then is
refused, where one that has only grown is not.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

from worker.batch.batch import Batch
from worker.batch.loop_exit import LoopIterator, OnlyAsyncFor, caller
from worker.batch.page import Page
from worker.batch.sizing import Size
from worker.batch.walk import Walk, WalkHost
from worker.errors import CursorMismatch, UnsupportedStatement
from worker.ledger import StepRecord, StepSpec

_PIECE = 1 << 20


class Lines(OnlyAsyncFor, Walk):
    """An `async for` over batches of lines; see `JobContext.lines`."""

    kind = "lines"
    begins_ahead = False  # nothing is read from the database

    def __init__(self, host: WalkHost, path: Path, *, size: Size | None, encoding: str, name: str | None) -> None:
        super().__init__(host, name=name, size=size, count="estimate")
        self._path = path
        self._encoding = encoding
        self._file: IO[bytes] | None = None
        self._hash = hashlib.sha256()
        self._done = self._length = 0

    def __aiter__(self) -> AsyncIterator[Batch[str]]:
        iterator = LoopIterator[Batch[str]](self, caller())
        self.hold(iterator)
        return iterator

    async def _open(self, name: str) -> StepRecord:
        spec = StepSpec(name, self.kind, str(self._path), [], named=self._given_name is not None)
        if self._given_name is None:
            self._host.ensure_unique_statement(f"{self.kind} {self._path}")
        step = self.run.checkpoints.find_step(spec)
        if step is not None and step.done:
            return step
        try:
            self._file = await asyncio.to_thread(self._path.open, "rb")
        except OSError as error:
            raise UnsupportedStatement(f"lines: {self._path} cannot be read: {error.strerror}") from error
        self._length = self._path.stat().st_size
        if step is None:
            return await self.run.checkpoints.open_step(spec, upper_bound=None, total=None)
        if step.cursor is not None:
            await asyncio.to_thread(self._skip, *step.cursor)
        return step

    def _skip(self, done: int, known: str) -> None:
        """Go past what is done, if it is what it was."""
        assert self._file is not None  # noqa: S101
        if self._length < done:
            raise CursorMismatch(
                f"lines: {self._path} has {self._length} bytes, of which {done} are done: it was cut off since then; "
                f"bring it back, or begin again: worker retry {self.run.spec.id} --from-start"
            )
        left = done
        while left:
            piece = self._file.read(min(left, _PIECE))
            self._hash.update(piece)
            left -= len(piece)
        if self._hash.hexdigest() != known:
            raise CursorMismatch(
                f"lines: the first {done} bytes of {self._path}, which are done, are not what they were: it was "
                f"changed since then; bring it back, or begin again: worker retry {self.run.spec.id} --from-start"
            )
        self._done = done

    async def next_batch(self) -> Batch[str] | None:
        """Commit the lines before, obey orders, read the next ones; None at the end."""
        if self._step is None:
            if not await self.begin():
                return None
        else:
            await self.commit()
        await self._host.boundary(resumable=True, table="")
        lines, cursor = await asyncio.to_thread(self._read, self.size)
        if not lines:
            await self.mark_done()
            self.end()
            return None
        self.open_batch()
        batch: Batch[str] = self.batch(Page(lines, [], [cursor[0]], cursor))
        await self.refuse_deadly_batch(self._page, len(lines))
        return batch

    def _read(self, size: int) -> tuple[list[str], list[Any]]:
        """Return the next lines, without their ends, and the cursor behind them."""
        assert self._file is not None  # noqa: S101
        found: list[str] = []
        while len(found) < size:
            raw = self._file.readline()
            if not raw:
                break
            self._hash.update(raw)
            self._done += len(raw)
            try:
                found.append(raw.decode(self._encoding).rstrip("\r\n"))
            except UnicodeDecodeError as error:
                raise UnsupportedStatement(
                    f"lines: {self._path}, the line that ends at byte {self._done}, is not {self._encoding}: {error}"
                ) from None
        return found, [self._done, self._hash.hexdigest()]

    def _share(self) -> float | None:
        if self.step.done or not self._length:
            return 1.0
        return min(1.0, self._done / self._length)

    def end(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().end()
