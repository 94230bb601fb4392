"""`JsonLinesParts`: files with one JSON value a line, one for each batch."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from worker.sinks.parts import JSON_FORM, Parts, make_dict

if TYPE_CHECKING:
    from worker.attempt.context import JobContext


class JsonLinesParts(Parts):
    """Files with one JSON object a line, one for each batch: `async with JsonLinesParts(ctx, directory) as parts`.

    JSON has no bytes, and no number that is infinite or none: bytes are written in base64, these numbers as the texts
    "NaN", "Infinity" and "-Infinity".

    Args:
        ctx: The context of the job.
        directory: A directory, or a URL; see `Parts`.
        compress: Whether to compress the parts by gzip.
        storage_options: Options for fsspec.
    """

    def __init__(
        self,
        ctx: JobContext,
        directory: str | Path,
        *,
        compress: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(ctx, directory, storage_options=storage_options)
        self._compress = compress
        self.suffix = ".jsonl.gz" if compress else ".jsonl"

    def _encode(self, rows: Sequence[Any]) -> bytes:
        data = b"".join(to_json(make_dict(row), **JSON_FORM) + b"\n" for row in rows)
        return gzip.compress(data, mtime=0) if self._compress else data
