"""`ctx.lines`: a text file by batches of lines.

The cursor is the number of processed bytes and their SHA-256. If a file was truncated, or changed in that part, the
walk fails. A file may grow.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import IO, Any

from worker.batch.source import Bounds, OpenStep, Page
from worker.batch.transaction import BatchTransaction
from worker.errors import CursorMismatch, UnsupportedStatement

_PIECE_BYTES = 1 << 20


class LinesSource:
    """The lines of a file; see `JobContext.lines`.

    Args:
        path: The file.
        encoding: The encoding of its text.
        max_bytes: The largest number of bytes in a batch of more than one line.
    """

    kind = "lines"

    def __init__(self, path: Path, *, encoding: str, max_bytes: int) -> None:
        self._path = path
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._file: IO[bytes] | None = None
        self._hash = hashlib.sha256()
        self._done_bytes = self._length = 0

    @property
    def fingerprint(self) -> str:
        """The path."""
        return str(self._path)

    async def open(self, step: OpenStep) -> Bounds:
        """Open the file, and skip the lines that are processed."""
        try:
            self._file = await asyncio.to_thread(self._path.open, "rb")
        except OSError as error:
            raise UnsupportedStatement(f"lines: {self._path} cannot be read: {error.strerror}") from error
        self._length = self._path.stat().st_size
        if step.cursor is not None:
            await asyncio.to_thread(self._skip, step.run_id, *step.cursor)
        return Bounds()

    def _skip(self, run_id: str, done_bytes: int, known_hash: str) -> None:
        """Read past the processed bytes, and check that they are unchanged."""
        assert self._file is not None  # noqa: S101
        cure = f"restore it, or start over: worker retry {run_id} --from-start"
        if self._length < done_bytes:
            raise CursorMismatch(
                f"lines: {self._path} has {self._length} bytes, but {done_bytes} are done: it was truncated; {cure}"
            )
        remaining = done_bytes
        while remaining:
            piece = self._file.read(min(remaining, _PIECE_BYTES))
            self._hash.update(piece)
            remaining -= len(piece)
        if self._hash.hexdigest() != known_hash:
            raise CursorMismatch(
                f"lines: the first {done_bytes} bytes of {self._path}, which are done, have changed; {cure}"
            )
        self._done_bytes = done_bytes

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[str] | None:
        """Return the next lines, without their line ends."""
        lines = await asyncio.to_thread(self._read, size)
        if not lines:
            return None
        share = min(1.0, self._done_bytes / self._length) if self._length else 1.0
        return Page(lines, [self._done_bytes, self._hash.hexdigest()], last_key=[self._done_bytes], share=share)

    def _read(self, size: int) -> list[str]:
        assert self._file is not None  # noqa: S101
        found: list[str] = []
        end = self._done_bytes + self._max_bytes
        while len(found) < size and self._done_bytes < end:
            raw = self._file.readline()
            if not raw:
                break
            self._hash.update(raw)
            self._done_bytes += len(raw)
            try:
                found.append(raw.decode(self._encoding).rstrip("\r\n"))
            except UnicodeDecodeError as error:
                raise UnsupportedStatement(
                    f"lines: {self._path}, line that ends at byte {self._done_bytes}: not {self._encoding}: {error}"
                ) from None
        return found

    async def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
