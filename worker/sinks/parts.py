"""Writes a part for each batch. Exactly the parts of committed batches count, whatever is killed.

A part gets a name of its own at each write, and is recorded in `worker.part`, in the transaction of its batch. So it
counts if and only if the batch has been committed. The files of batches that were not committed are deleted when the
next attempt opens the sink, unless helpers of the run may still commit theirs, and when the sink ends. An attempt that
was replaced can no longer commit a part.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

from pydantic import BaseModel
from sqlalchemy import inspect

from worker.awaiting import track_awaits
from worker.batch.batch import Batch
from worker.errors import CursorMismatch, LonghaulError, SinkUnavailable, UsageError, format_error
from worker.ledger.queries import query, source
from worker.sinks.directory import Directory, open_directory

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

MANIFEST = "manifest.json"
#: The form of values in JSON, which is valid whatever they are.
JSON_FORM: dict[str, Any] = {"fallback": str, "bytes_mode": "base64", "inf_nan_mode": "strings"}
#: The directories that each attempt has opened.
_OPENED: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
_LONGEST_STEP = 100  # characters of a step in the name of a part: a name of a file has at most 255 bytes


@track_awaits("parts")
class Parts(ABC):
    """A directory or object prefix with a part for each batch: `async with CsvParts(ctx, directory) as parts`.

    Args:
        ctx: The context of the job.
        directory: A directory, which is made if it does not exist, or a URL that fsspec opens (extra `fsspec`). It
            belongs to one run.
        storage_options: Options for fsspec, such as credentials.
    """

    suffix = ""

    def __init__(
        self, ctx: JobContext, directory: str | Path, *, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self._attempt = ctx._attempt
        self._run_id = ctx.run_id
        self._is_helper = ctx.is_helper
        self._is_looking = ctx._is_looking
        self._directory: Directory = open_directory(directory, storage_options)
        self._is_open = False
        self._checked_steps: set[str] = set()
        # Parts of this run alone may be deleted: other files can have names of the same form.
        self._tag = hashlib.sha256(ctx.run_id.encode(errors="surrogatepass")).hexdigest()[:6]
        self._stray = re.compile(rf"^(\.part-.*|.+-\d{{8}}-{self._tag}[0-9a-f]{{6}}\.[a-z0-9.]+)$")

    @abstractmethod
    def _encode(self, rows: Sequence[Any]) -> bytes:
        """Return the content of a part."""

    async def __aenter__(self) -> Self:
        """Claim the directory for this run, and delete the parts of batches that were not committed.

        Raises:
            SinkUnavailable: It cannot be written.
            UsageError: It holds the parts of another run, or a loop of the job is in progress.
        """
        self._is_open = True
        if self._is_looking:
            return self  # `worker plan` and `worker try` write no files
        try:
            await self._attempt.enter_loop(None)  # the sink reads the ledger on the connection of the open batch
        except UsageError as error:
            name = type(self).__name__
            raise UsageError(f"{name}: open the sink before the loop, and write to it in the loop: {error}") from None
        await self._attempt.durable_run()  # from here on, an earlier attempt can commit no part
        await self._in_directory(self._claim)
        _OPENED.setdefault(self._attempt, set()).add(self._directory.name)
        if not self._is_helper:  # the run itself has written it
            await self._write_manifest(is_complete=False)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None or self._is_looking:
            return
        await self._attempt.settle_loop()
        run = await self._attempt.durable_run()
        await run.checkpoints.reload()  # an attempt that was replaced writes no manifest
        await self._write_manifest(is_complete=True)

    async def write(self, batch: Batch[Any], rows: Sequence[Any] | None = None) -> str | None:
        """Write a part, which counts once the batch is committed.

        Args:
            batch: The batch.
            rows: The rows of the part: dicts, rows of SQLAlchemy, pydantic models, dataclasses or ORM objects. Default:
                those of the batch.

        Returns:
            The name of the part; None if there are no rows.

        Raises:
            SinkUnavailable: The directory is full or cannot be written. The batch is rolled back.
            CursorMismatch: An earlier attempt has written parts of this loop to a directory that is not open now.
            UsageError: The sink is not open, or a row does not fit its format.
        """
        if not self._is_open:
            raise UsageError(
                f"{type(self).__name__} is not open: write `async with {type(self).__name__}(...) as parts`"
            )
        chosen = list(batch if rows is None else rows)
        if not chosen:
            return None
        step = re.sub(r"[^A-Za-z0-9_.]+", "-", batch.step).strip(".-")[:_LONGEST_STEP] or "part"
        name = f"{step}-{batch.number:08}-{self._tag}{secrets.token_hex(3)}{self.suffix}"
        try:
            data = await asyncio.to_thread(self._encode, chosen)
        except ValueError as error:  # half of a surrogate pair, or an object that pydantic cannot convert
            raise UsageError(f"{name}: a row cannot be written: {format_error(error)}") from error
        if self._is_looking:
            return name
        driver = await batch.driver()
        if batch.step not in self._checked_steps:
            await self._check_directory(driver, batch.step)
            self._checked_steps.add(batch.step)
        await self._in_directory(lambda: self._directory.put(name, data))
        digest = hashlib.sha256(data).hexdigest()
        values = (batch.run_id, batch.step, self._directory.name, name, len(chosen), len(data), digest)
        await driver.execute(source("insert_part"), *values)
        return name

    async def _check_directory(self, driver: Any, step: str) -> None:
        """Raise `CursorMismatch` if an earlier attempt has written parts of the step to a directory left since then."""
        opened = sorted(_OPENED[self._attempt])
        left = await driver.fetchval(source("find_left_directory"), self._run_id, step, opened)
        if left is not None:
            raise CursorMismatch(
                f"{self._directory.name}: an earlier attempt of run {self._run_id} has written parts of the step "
                f"{step!r} to {left}, which this attempt has not opened: open the same directories in each attempt, "
                f"such as one made of ctx.run_id, or start over: worker retry {self._run_id} --from-start"
            )

    def _claim(self) -> None:
        self._directory.make()
        # Of two runs that begin at once, one writes the manifest, and the other finds it.
        manifest = {"run": self._run_id, "complete": False, "rows": 0, "parts": []}
        self._directory.create(MANIFEST, json.dumps(manifest, indent=1).encode())
        found = self._directory.get(MANIFEST) or b""
        try:
            owner = json.loads(found)["run"]
        except (ValueError, KeyError, TypeError):
            # An object store may write a part of a file: such a file is written again.
            is_own = found.startswith(json.dumps({"run": self._run_id}, indent=1).removesuffix("\n}").encode())
            owner = self._run_id if is_own else "that cannot be read"
        if owner != self._run_id:
            raise UsageError(
                f"{self._directory.name} holds the manifest of run {owner}: give each run a directory of its own, such "
                f"as one that ends with ctx.run_id, or delete its content"
            )

    async def _write_manifest(self, *, is_complete: bool) -> None:
        """Delete the parts that are not committed, and write the list of the others."""
        async with self._attempt.database.connection() as connection:
            values = {"run_id": self._run_id, "directory": self._directory.name}
            parts = [dict(row._mapping) for row in await connection.execute(query("list_parts"), values)]
            # Other hands may have written parts that they are about to commit. At the end, they can commit no more.
            may_delete = is_complete or not await connection.scalar(query("has_helpers"), {"run_id": self._run_id})
        rows = sum(part["rows"] for part in parts)
        manifest = {"run": self._run_id, "complete": is_complete, "rows": rows, "parts": parts}

        def write() -> None:
            committed = {part["name"] for part in parts}
            present = set(self._directory.list())
            missing = sorted(committed - present)
            if missing:
                raise SinkUnavailable(
                    f"{self._directory.name} misses {len(missing)} committed parts, such as {missing[0]}: make the "
                    f"directory visible to this worker, or start over: "
                    f"worker retry {self._run_id} --from-start"
                )
            for name in present - committed:
                if may_delete and self._stray.match(name):
                    self._directory.delete(name)
            self._directory.put(MANIFEST, json.dumps(manifest, indent=1).encode())

        await self._in_directory(write)

    async def _in_directory(self, work: Any) -> None:
        try:
            await asyncio.to_thread(work)
        except LonghaulError:
            raise
        except Exception as error:  # a file system of fsspec raises errors of its own
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise SinkUnavailable(
                f"{self._directory.name} cannot be written: {reason}. Nothing is lost: make room, or make it writable "
                f"for this worker; run {self._run_id} continues with its next attempt"
            ) from error


def make_dict(row: Any) -> dict[str, Any]:
    """Return a row as a dict.

    Raises:
        UsageError: The row has no names.
    """
    if isinstance(row, Mapping):
        return dict(row)
    if hasattr(row, "_mapping"):
        return dict(row._mapping)
    if isinstance(row, BaseModel):
        return dict(row)
    state = inspect(row, raiseerr=False)
    if state is not None and hasattr(state, "mapper"):
        return {each.key: getattr(row, each.key) for each in state.mapper.column_attrs}
    if is_dataclass(row):
        return {each.name: getattr(row, each.name) for each in fields(row)}
    kind = type(row).__name__
    raise UsageError(f"a sink writes dicts, rows, pydantic models, dataclasses or ORM objects, not {kind}")
