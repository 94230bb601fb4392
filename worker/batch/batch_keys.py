"""The keys under which a batch and its rows are known to other services."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from worker.batch.page import jsonable
from worker.batch.source import Page


class BatchKeys:
    """Keys that are the same for the same rows at each attempt of a run, whatever the batch's number and size.

    Args:
        run_id: The id of the run.
        step: The name of the step.
        page: The rows.
        cursor: The cursor that the rows are behind.

    Attributes:
        run_id: The id of the run.
        step: The name of the step.
    """

    def __init__(self, run_id: str, step: str, page: Page[Any], cursor: Any) -> None:
        self.run_id = run_id
        self.step = step
        self._prefix = f"{run_id}:{step}:"
        self._page = page
        self._cursor = cursor

    @property
    def of_rows(self) -> list[str]:
        """The key of each row; empty if the rows have none."""
        return [self._prefix + _encode(key) for key in self._page.row_keys()]

    @property
    def of_batch(self) -> str:
        """The key of the batch: another set of rows has another key, as services that compare the request require.

        It is made from the keys of the rows. If they have none, it is made from their place in the walk, and for a
        walk without a cursor from their values.
        """
        page = self._page
        rows: Any = page.row_keys()
        if not rows:
            rows = [self._cursor, page.cursor] if page.cursor is not None else [jsonable(row) for row in page.rows]
        return self._prefix + hashlib.blake2b(_encode(rows).encode(), digest_size=16).hexdigest()


def _encode(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
